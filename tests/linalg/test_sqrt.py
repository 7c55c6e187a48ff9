"""|A|^(1/2) z against the dense square root."""

import warnings

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from flatmin.linalg import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    ScaledIdentityOperator,
    sqrt_matvec,
)

from ._matrices import SPECTRA, Bare, N, Reflected, operator, randn, rng, wishart

close = torch.testing.assert_close


def dense_root(matrix):
    values, U = torch.linalg.eigh(matrix.double())
    return (U * values.abs().sqrt()) @ U.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tol", [0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectrum(name, tol, dtype):
    A = Bare(SPECTRA[name], dtype)
    root = dense_root(A.matrix)
    for seed in range(3):
        z = 3 * randn(N, seed=seed)
        before = A.n_matvecs
        result = sqrt_matvec(A, z.to(dtype), tol=tol, max_steps=N)
        truth = root @ z
        true = torch.linalg.vector_norm(result.vector - truth)
        # Rounding of size eps in an eigenvalue 0 is one of size √eps in its root.
        rounding = 3 * torch.finfo(dtype).eps ** 0.5 * z.norm()
        assert true <= result.error + rounding
        assert true <= tol * truth.norm() + rounding
        assert result.converged
        assert result.vector.dtype == dtype
        assert result.n_matvecs == A.n_matvecs - before <= N


@pytest.mark.parametrize("name", ["outliers", "indefinite", "decaying"])
def test_the_whole_space_is_exact(name):
    A, z = Bare(SPECTRA[name]), randn(N)
    result = sqrt_matvec(A, z, tol=0, max_steps=10 * N)
    close(result.vector, dense_root(A.matrix) @ z, atol=1e-10, rtol=0)
    assert (result.error, result.converged, result.n_matvecs) == (0, True, N)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_tiny_matrices(size):
    A, z = operator(torch.linspace(-2, 3, size)), randn(size)
    result = sqrt_matvec(A, z)
    close(result.vector, dense_root(A.matrix) @ z)
    assert result.n_matvecs == size


@pytest.mark.parametrize("scale", [0.0, 4.0, -9.0])
def test_multiples_of_the_identity(scale):
    A, z = ScaledIdentityOperator(torch.tensor(scale), 500), randn(500).float()
    result = sqrt_matvec(A, z)
    close(result.vector, abs(scale) ** 0.5 * z)
    assert (result.error, result.n_matvecs) == (0, 4)


def test_zero_vector():
    A = Bare(SPECTRA["outliers"])
    result = sqrt_matvec(A, torch.zeros(N).double())
    assert not result.vector.any()
    assert (result.error, result.converged, result.n_matvecs) == (0, True, 0)


@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_scale_does_not_matter(factor):
    z = randn(N)
    a = sqrt_matvec(Bare(SPECTRA["outliers"]), z)
    b = sqrt_matvec(Bare(factor * torch.tensor(SPECTRA["outliers"]).double()), z)
    assert a.n_matvecs == b.n_matvecs
    close(a.vector, b.vector / factor**0.5)


@pytest.mark.parametrize("definite", [True, False])
def test_draws_have_the_covariance(definite):
    """|A|^(1/2) z of standard normal z, in the eigenbasis of A."""
    D, M = 6, 800
    values = torch.linspace(0.5, 3, D).double()
    A = operator(values if definite else values - 1.7)
    covariance = dense_root(A.matrix) @ dense_root(A.matrix)
    generator = rng(1)
    draws = torch.stack(
        [
            sqrt_matvec(
                A, torch.randn(D, generator=generator, dtype=torch.float64)
            ).vector
            for _ in range(M)
        ]
    )
    spread = covariance.square() + torch.outer(
        covariance.diagonal(), covariance.diagonal()
    )
    error = draws.T @ draws / M - covariance
    assert (error / spread.sqrt()).abs().max() < 4.5 / M**0.5


@pytest.mark.parametrize("name", ["hessian", "dense at 0"])
def test_the_error_is_honest_where_convergence_is_slow(name):
    """D = 3000, with eigenvalues of both signs that crowd at the kink."""
    bulk = randn(2970)
    values = {
        "hessian": torch.cat([20 * 0.85 ** torch.arange(30.0), 0.3 * bulk**3]),
        "dense at 0": torch.linspace(-1, 1, 3000) ** 3,
    }[name]
    A, z = Reflected(values), randn(3000, seed=2)
    truth = A.reflect(A.values.abs().sqrt() * A.reflect(z))
    for steps in (20, 50, 100, 180):
        with pytest.warns(
            ConvergenceWarning, match=f"after {steps} products; tol=0.0001 was"
        ):
            result = sqrt_matvec(A, z, tol=1e-4, max_steps=steps)
        true = torch.linalg.vector_norm(result.vector - truth)
        assert not result.converged
        assert true < 1.3 * result.error < 6 * true


def test_a_wishart_matrix_takes_few_products():
    matrix, z = wishart(), randn(N)
    A = FunctionOperator(lambda v: matrix @ v, N, dtype=torch.float64)
    result = sqrt_matvec(A, z, tol=1e-2)
    assert result.n_matvecs <= 30
    truth = dense_root(matrix) @ z
    assert (result.vector - truth).norm() <= 0.01 * truth.norm()


def test_the_warning_points_at_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sqrt_matvec(Bare(SPECTRA["outliers"]), randn(N), max_steps=8)
    assert caught[0].filename == __file__
    assert "Raise max_steps or tol" in str(caught[0].message)


def test_progress_and_interrupt(capsys):
    def product(v):
        if A.n_matvecs == 6:
            raise KeyboardInterrupt
        return torch.linspace(-1, 1, 200) * v

    A = FunctionOperator(product, 200)
    with pytest.raises(KeyboardInterrupt):
        sqrt_matvec(A, randn(200).float(), verbose=True)
    assert "square root" in capsys.readouterr().err


def test_a_product_that_is_not_finite():
    A = FunctionOperator(lambda v: v / 0, 300)
    with pytest.raises(torch.linalg.LinAlgError, match=r"must be finite. Got NaN"):
        sqrt_matvec(A, randn(300).float())


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (torch.ones(3), {}, r"vector of shape \(5,\). Got shape \(3,\)"),
        (torch.ones(5, 1), {}, r"vector of shape \(5,\). Got shape \(5, 1\)"),
        (torch.full((5,), torch.inf), {}, "finite vector .* with norm inf"),
        (torch.ones(5), {"max_steps": 0}, "max_steps must be an integer .* Got 0"),
        (
            torch.ones(5),
            {"tol": float("nan")},
            "tol must be a finite number of at least 0",
        ),
    ],
)
def test_bad_input(z, options, message):
    with pytest.raises(ValueError, match=message):
        sqrt_matvec(DiagonalOperator(torch.ones(5)), z, **options)


@pytest.mark.parametrize("z", ["a", 1.0, None, [1.0] * 5])
def test_z_is_a_tensor(z):
    with pytest.raises(TypeError, match=r"z must be a Tensor of shape \(5,\)"):
        sqrt_matvec(DiagonalOperator(torch.ones(5)), z)


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"sqrt_matvec takes one matrix. Got several"):
        sqrt_matvec(DenseOperator(randn(2, 3, 3)), torch.ones(3))
