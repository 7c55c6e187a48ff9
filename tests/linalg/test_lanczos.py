"""The Lanczos process: its basis, its T, and where the Krylov space ends."""

import numpy as np
import pytest
import torch

from flatmin.linalg import DiagonalOperator, FunctionOperator
from flatmin.linalg._lanczos import LanczosProcess

from ._matrices import SPECTRA, Bare, N, Reflected, randn

close = torch.testing.assert_close


def run(A, n_steps, max_steps=None, seed=1):
    process = LanczosProcess(A, max_steps or n_steps)
    v = randn(A.shape[-1], seed=seed)
    process.start((v / v.norm()).to(A.dtype))
    process.advance(n_steps)
    return process


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["outliers", "decaying", "indefinite", "one large"])
def test_basis_and_tridiagonal_matrix(name, dtype):
    A = Bare(SPECTRA[name], dtype)
    process = run(A, 60)
    V, T = process.basis.double(), process.tridiagonal()
    eps = torch.finfo(dtype).eps
    close(V @ V.T, torch.eye(60).double(), atol=20 * eps, rtol=0)
    close(V @ A.matrix @ V.T, T, atol=20 * eps * max(SPECTRA[name]), rtol=0)
    assert A.n_matvecs == process.n_steps == 60
    assert not process.exhausted


def test_no_ghosts():
    """D steps on D distinct eigenvalues find each of them once."""
    A = Bare(torch.cat([100 * 0.5 ** torch.arange(10.0), torch.linspace(0, 1, 40)]))
    values = torch.linalg.eigvalsh(run(A, 50).tridiagonal())
    close(values, torch.linalg.eigvalsh(A.matrix), atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("diagonal", "dimension"),
    [([0.0] * 300, 1), ([2.0] * 300, 1), ([5.0] * 3 + [1.0] * 297, 2)],
)
def test_a_krylov_space_that_ends(diagonal, dimension, dtype):
    A = DiagonalOperator(torch.tensor(diagonal, dtype=dtype))
    process = run(A, 7)
    assert process.exhausted
    T = process.tridiagonal()
    assert not T[dimension:].any()
    assert not process.basis[dimension:].any()
    values = torch.linalg.eigvalsh(T[:dimension, :dimension])
    close(values, torch.tensor(sorted(set(diagonal))).double())


def test_steps_add_up_and_stop_at_the_limit():
    whole = run(Bare(SPECTRA["outliers"]), 20)
    parts = run(Bare(SPECTRA["outliers"]), 3, max_steps=20)
    parts.advance(4)
    assert torch.equal(parts.tridiagonal()[:6, :6], whole.tridiagonal()[:6, :6])
    assert not parts.tridiagonal()[7:].any()
    parts.advance(1000)
    assert parts.n_steps == 20
    assert torch.equal(parts.tridiagonal(), whole.tridiagonal())


def test_a_new_start_forgets_the_old_one():
    A = Bare(SPECTRA["outliers"])
    process = run(A, 20)
    v = randn(N, seed=2)
    process.start(v / v.norm())
    process.advance(5)
    assert not process.tridiagonal()[5:].any()
    close(process.tridiagonal()[:5, :5], run(A, 5, seed=2).tridiagonal())


def test_the_whole_space_is_exhausted():
    A = Bare(torch.linspace(-1, 2, 6))
    assert not run(A, 5, max_steps=6).exhausted
    assert run(A, 6).exhausted


def test_a_product_that_is_not_finite_stays_visible():
    A = FunctionOperator(lambda v: v * np.nan, 50)
    process = run(A, 5)
    assert process.tridiagonal().isnan().any()
    assert not process.exhausted


def test_a_large_float32_basis_is_orthogonal():
    values = torch.cat([torch.arange(40.0, 20, -1), randn(19_980) * 0.5])
    process = run(Reflected(values, torch.float32), 60)
    V = process.basis.double()
    close(V @ V.T, torch.eye(60).double(), atol=1e-6, rtol=0)
