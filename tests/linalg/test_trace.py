"""Traces: exact for small matrices, Hutchinson's estimate in units of its error."""

import pytest
import torch

from flatmin.linalg import DenseOperator, DiagonalOperator, FunctionOperator, trace

from ._matrices import operator, randn, rng

close = torch.testing.assert_close


@pytest.mark.parametrize("size", [1, 7, 200])
def test_small_matrices_are_exact(size):
    A = randn(size, size)
    A = FunctionOperator(lambda v, A=A: A @ v, size, dtype=torch.float64)
    result = trace(A, rng=rng())
    close(result.value, A.to_dense().trace())
    assert result.stderr == 0
    assert result.n_matvecs == size


def test_batches_are_exact():
    result = trace(DenseOperator(randn(3, 5, 5)), rng=rng())
    close(result.value, randn(3, 5, 5).diagonal(dim1=-2, dim2=-1).sum(-1))
    assert result.stderr.shape == (3,)


def test_a_diagonal_matrix_has_no_variance():
    result = trace(DiagonalOperator(torch.arange(300.0)), rng=rng())
    assert float(result.value) == 300 * 299 / 2
    assert result.stderr == 0
    assert result.n_matvecs == 8


def test_estimates_are_calibrated():
    """The z-scores of 300 seeds have mean 0 and standard deviation near 1."""
    A = operator(torch.linspace(-1, 3, 60))
    exact, scores, spreads = float(A.trace()), [], []
    for seed in range(300):
        result = trace(A, rng=rng(seed), rtol=0, min_probes=2, max_probes=20)
        assert result.n_matvecs == 20
        scores.append(float((result.value - exact) / result.stderr))
        spreads.append(float(result.stderr))
    z = torch.tensor(scores)
    assert z.mean().abs() < 4 / 300**0.5
    assert 0.85 < z.std() < 1.2
    # Var zᵀAz = 2 (‖A‖²_F - Σ a²ᵢᵢ) for random signs.
    variance = 2 * (A.matrix.square().sum() - A.matrix.diagonal().square().sum())
    assert torch.tensor(spreads).square().mean() * 20 == pytest.approx(
        float(variance), rel=0.05
    )


@pytest.mark.parametrize("rtol", [0.3, 0.1, 0.03])
def test_probes_are_drawn_until_the_error_is_small_enough(rtol):
    A = operator(torch.linspace(0, 3, 300))
    result = trace(A, rng=rng(), rtol=rtol, max_probes=250)
    assert 8 <= result.n_matvecs < 250
    assert result.stderr <= rtol * result.value
    assert (result.value - A.trace()).abs() < 5 * result.stderr


def test_a_trace_of_zero_is_told_by_its_error():
    A = operator([*torch.linspace(-1, 1, 300)])
    result = trace(A, rng=rng(), max_probes=20)
    assert result.n_matvecs == 20
    assert result.value.abs() < 5 * result.stderr


def test_dtype_and_seed():
    A = operator(torch.linspace(0, 1, 300), torch.float32)
    a, b = trace(A, rng=rng(0)), trace(A, rng=rng(0))
    assert a.value.dtype == a.stderr.dtype == torch.float32
    assert a.value == b.value != trace(A, rng=rng(1)).value


@pytest.mark.parametrize("probes", [(1, 10), (9, 8)])
def test_bad_input(probes):
    low, high = probes
    with pytest.raises(
        ValueError, match=rf"Got min_probes={low} and max_probes={high}"
    ):
        trace(operator([1.0]), rng=rng(), min_probes=low, max_probes=high)
