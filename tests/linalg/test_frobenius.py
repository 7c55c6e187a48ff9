"""Frobenius norms in units of their own errors."""

import pytest
import torch

from flatmin.linalg import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    frobenius_norm,
)

from ._matrices import SPECTRA, Bare, N, operator, randn, rng, wishart

close = torch.testing.assert_close


@pytest.mark.parametrize("size", [1, 7, 200])
def test_small_matrices_are_exact(size):
    A = randn(size, size)
    A = FunctionOperator(lambda v, A=A: A @ v, size, dtype=torch.float64)
    result = frobenius_norm(A)
    close(result.value, randn(size, size).norm())
    assert (result.stderr, result.n_matvecs) == (0, size)


def test_exact_on_request():
    A = Bare(SPECTRA["indefinite"])
    result = frobenius_norm(A, method="exact", max_matvecs=10)
    close(result.value, A.matrix.norm())
    assert result.n_matvecs == N


@pytest.mark.parametrize("name", SPECTRA)
def test_two_standard_errors_hold_nine_in_ten(name):
    A = Bare(SPECTRA[name])
    exact, inside = A.matrix.norm(), []
    for rtol in (0.2, 0.1, 0.03):
        for seed in range(20):
            result = frobenius_norm(A, rtol=rtol, rng=seed)
            assert result.n_matvecs <= 200
            inside.append(abs(result.value - exact) <= 2 * result.stderr + 1e-9)
    assert torch.stack(inside).double().mean() > 0.77


@pytest.mark.parametrize("name", ["outliers", "decaying", "indefinite"])
def test_the_error_is_that_of_the_root(name):
    A = Bare(SPECTRA[name])
    results = [
        frobenius_norm(A, rtol=0, max_matvecs=40, rng=seed) for seed in range(200)
    ]
    errors = torch.stack([r.value for r in results]) - A.matrix.norm()
    told = torch.stack([r.stderr for r in results]).square().mean().sqrt()
    assert 0.85 < told / errors.square().mean().sqrt() < 1.15
    # The root of an unbiased square is biased by -stderr² / (2 value).
    expected = -(told**2) / (2 * A.matrix.norm())
    assert (errors.mean() - expected).abs() < 4 * errors.std() / 200**0.5


@pytest.mark.parametrize("seed", range(3))
def test_wishart(seed):
    A = wishart(seed)
    product = FunctionOperator(lambda v: A @ v, N, dtype=torch.float64)
    result = frobenius_norm(product, rng=seed)
    assert result.stderr <= 0.02 * result.value
    assert (result.value - A.norm()).abs() < 4 * result.stderr
    assert result.n_matvecs == product.n_matvecs < 60


def test_without_variance():
    result = frobenius_norm(DiagonalOperator(torch.full((400,), 0.5)), rng=0)
    assert (float(result.value), float(result.stderr)) == (10, 0)
    assert result.n_matvecs == 10
    assert frobenius_norm(DiagonalOperator(torch.zeros(400)), rng=0).value == 0


def test_dtype_and_seed():
    A = Bare(SPECTRA["decaying"], torch.float32)

    def run(seed):
        return frobenius_norm(A, rng=seed, max_matvecs=20).value

    assert run(0).dtype == torch.float32
    assert run(0) == run(0) == run(rng(0)) != run(1)
    assert run(None) != run(None)


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
        frobenius_norm(operator([1.0]), **options)


def test_a_batch_is_refused():
    with pytest.raises(
        ValueError, match=r"frobenius_norm takes one matrix. Got several"
    ):
        frobenius_norm(DenseOperator(randn(2, 3, 3)))


def test_a_product_that_is_not_finite_is_no_exact_norm():
    with pytest.raises(torch.linalg.LinAlgError, match="must be finite"):
        frobenius_norm(FunctionOperator(lambda v: v * torch.nan, 400), rng=0)
