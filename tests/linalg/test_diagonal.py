"""Diagonals entry by entry, in units of their own errors."""

import pytest
import torch

from flatmin.linalg import DenseOperator, DiagonalOperator, FunctionOperator, diagonal

from ._matrices import SPECTRA, Bare, N, operator, randn, rng, wishart

close = torch.testing.assert_close
ESTIMATES = ["hutchinson", "xdiag", "auto"]


@pytest.mark.parametrize("size", [1, 7, 200])
def test_small_matrices_are_exact(size):
    A = randn(size, size)
    A = FunctionOperator(lambda v, A=A: A @ v, size, dtype=torch.float64)
    result = diagonal(A)
    close(result.value, randn(size, size).diagonal())
    assert result.stderr.shape == (size,)
    assert not result.stderr.any()
    assert result.n_matvecs == size


def test_exact_on_request():
    A = Bare(SPECTRA["indefinite"])
    result = diagonal(A, method="exact", max_matvecs=10)
    close(result.value, A.matrix.diagonal())
    assert result.n_matvecs == N


@pytest.mark.parametrize("size", [1, 2, 3, 10, 11, 13])
def test_xdiag_of_tiny_matrices(size):
    A = Bare(torch.linspace(2, -1, size))
    result = diagonal(A, method="xdiag", rng=0)
    errors = (result.value - A.matrix.diagonal()).abs()
    assert (errors <= 4 * result.stderr + 1e-9).all()
    assert result.n_matvecs == (size if size <= 10 else 2 * size)


@pytest.mark.parametrize("method", ESTIMATES)
@pytest.mark.parametrize("name", SPECTRA)
def test_two_standard_errors_hold_nine_entries_in_ten(name, method):
    A = Bare(SPECTRA[name])
    exact, inside = A.matrix.diagonal(), []
    for rtol in (0.3, 0.1):
        for seed in range(10):
            result = diagonal(A, method=method, rtol=rtol, rng=seed)
            errors = (result.value - exact).abs()
            inside.append(errors <= 2 * result.stderr + 1e-9)
    assert torch.stack(inside).double().mean() > 0.9


@pytest.mark.parametrize("name", ["outliers", "decaying", "indefinite", "one large"])
@pytest.mark.parametrize(("method", "limit"), [("hutchinson", 20), ("xdiag", 20)])
def test_estimates_are_unbiased_and_their_errors_true(name, method, limit):
    A, M = Bare(SPECTRA[name]), 100
    results = [
        diagonal(A, method=method, rtol=0, max_matvecs=limit, rng=seed)
        for seed in range(M)
    ]
    assert {r.n_matvecs for r in results} == {limit}
    errors = torch.stack([r.value for r in results]) - A.matrix.diagonal()
    z = errors.mean(0) / (errors.std(0) / M**0.5)
    assert z.abs().max() < 4.5
    told = torch.stack([r.stderr for r in results]).square().mean().sqrt()
    ratio = told / errors.square().mean().sqrt()
    assert 0.9 < ratio < (1.1 if method == "hutchinson" else 2.5)


def test_the_variance_is_that_of_random_signs():
    A = Bare(SPECTRA["indefinite"])
    M = A.matrix
    told = torch.stack(
        [
            diagonal(A, method="hutchinson", rtol=0, max_matvecs=20, rng=s).stderr
            for s in range(100)
        ]
    )
    variance = M.square().sum(1) - M.diagonal().square()
    close(told.square().mean(0) * 20, variance, rtol=0.25, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["low rank", "zero"])
def test_xdiag_is_exact_for_low_ranks(name, dtype):
    A = Bare(SPECTRA[name], dtype)
    result = diagonal(A, method="xdiag", rng=0)
    eps = torch.finfo(dtype).eps
    assert result.value.dtype == result.stderr.dtype == dtype
    assert (result.value.double() - A.matrix.diagonal()).abs().max() <= 20 * eps
    assert result.stderr.max() <= 20 * eps
    assert result.n_matvecs == 20


@pytest.mark.parametrize("method", ["hutchinson", "auto"])
def test_a_diagonal_matrix_has_no_variance(method):
    d = randn(300)
    result = diagonal(DiagonalOperator(d), method=method, rng=0)
    close(result.value, d)
    assert not result.stderr.any()
    assert result.n_matvecs == 10


def test_xdiag_by_its_definition():
    """Against k projections, one for each vector that is left out."""
    A, k = Bare(SPECTRA["outliers"]), 8
    result = diagonal(A, method="xdiag", rtol=0, max_matvecs=2 * k, rng=0)
    generator = rng(0)
    signs = [torch.randint(0, 2, (N,), generator=generator) for _ in range(k)]
    Omega = 2.0 * torch.stack(signs, dim=1).double() - 1
    A = A.matrix

    def leave_one_out(Omega):
        estimates = []
        for i in range(Omega.shape[1]):
            others, w = torch.arange(Omega.shape[1]) != i, Omega[:, i]
            Q = torch.linalg.qr(A @ Omega[:, others]).Q
            PA = Q @ (Q.T @ A)
            estimates.append(PA.diagonal() + w * ((A - PA) @ w))
        return torch.stack(estimates).mean(0)

    close(result.value, leave_one_out(Omega))
    without = [leave_one_out(Omega[:, torch.arange(k) != j]) for j in range(k)]
    variance = (k - 1) * torch.stack(without).var(0, correction=0)
    close(result.stderr, variance.sqrt())


def test_rows_are_taken_in_blocks(monkeypatch):
    A = Bare(SPECTRA["outliers"])
    whole = diagonal(A, method="xdiag", rng=0)
    monkeypatch.setattr("flatmin.linalg._xdiag._ROWS", 70)
    blocks = diagonal(A, method="xdiag", rng=0)
    close(blocks.value, whole.value)
    close(blocks.stderr, whole.stderr)


@pytest.mark.parametrize("method", ESTIMATES)
@pytest.mark.parametrize("rtol", [0.3, 0.15])
def test_products_are_taken_until_the_error_is_small_enough(method, rtol):
    matrix = wishart()
    A = FunctionOperator(lambda v: matrix @ v, N, dtype=torch.float64)
    result = diagonal(A, method=method, rtol=rtol, max_matvecs=290, rng=0)
    assert result.stderr.norm() <= rtol * result.value.norm()
    assert (result.value - matrix.diagonal()).norm() < 1.5 * result.stderr.norm()
    assert 10 <= result.n_matvecs == A.n_matvecs < 290


@pytest.mark.parametrize("method", ESTIMATES)
def test_seeds(method):
    A = Bare(SPECTRA["outliers"])

    def run(seed):
        return diagonal(A, method=method, rng=seed, max_matvecs=60).value

    assert torch.equal(run(0), run(0))
    assert torch.equal(run(0), run(rng(0)))
    assert not torch.equal(run(0), run(1))
    assert not torch.equal(run(None), run(None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_matvecs": 5}, "max_matvecs must be an integer of at least 6. Got 5"),
        ({"max_matvecs": 9.5}, "max_matvecs must be an integer of at least 6. Got 9.5"),
        ({"rtol": float("nan")}, "rtol must be a finite number of at least 0. Got nan"),
        ({"method": "xtrace"}, "Unknown method 'xtrace'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        diagonal(operator([1.0]), **options)


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"diagonal takes one matrix. Got several"):
        diagonal(DenseOperator(randn(2, 3, 3)))
