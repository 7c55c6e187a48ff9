"""Results scale with the operator, from 1e-150 to 1e150, and NaN is never a number."""

import pytest
import torch
from torch.linalg import LinAlgError

from flatmin.linalg import (
    DenseOperator,
    diagonal,
    eigsh,
    frobenius_norm,
    spectral_density,
    sqrt_matvec,
    trace,
)

SIZE = 300


def matrix():
    """Few large eigenvalues, some negative ones, and a long tail."""
    rng = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=rng, dtype=torch.float64))
    values = 1 / torch.arange(1, SIZE + 1, dtype=torch.float64) ** 2
    values[1::3] *= -1
    return Q * values @ Q.T


def eigenpairs(A):
    result = eigsh(A, 5, which="LM", tol=1e-8, rng=0)
    assert result.converged.all()
    return result.eigenvalues, result.residuals.amax()


def few(A):
    """Of a matrix that is handed to a dense solver."""
    part = DenseOperator(A.to_dense()[:20, :20])
    result = eigsh(part, 5)
    return result.eigenvalues, result.residuals.amax()


def estimate(function, **options):
    def ask(A):
        result = function(A, rng=0, **options)
        return result.value, result.stderr

    return ask


def density(A):
    result = spectral_density(A, method="lanczos", n_probes=3, n_steps=20, rng=0)
    return result.moment(1)


def root(A):
    z = torch.ones(SIZE, dtype=A.dtype)
    result = sqrt_matvec(A, z, tol=1e-2)
    assert result.converged
    return result.vector.square(), result.error.square()


QUANTITIES = {
    "eigenpairs": eigenpairs,
    "eigenpairs, dense": few,
    "trace, exact": estimate(trace, method="exact"),
    "trace, Hutchinson": estimate(trace, method="hutchinson", max_matvecs=30),
    "trace, XTrace": estimate(trace, method="xtrace", max_matvecs=40),
    "trace, auto": estimate(trace, max_matvecs=100),
    "diagonal, exact": estimate(diagonal, method="exact"),
    "diagonal, Hutchinson": estimate(diagonal, method="hutchinson", max_matvecs=30),
    "diagonal, XDiag": estimate(diagonal, method="xdiag", max_matvecs=40),
    "Frobenius, exact": estimate(frobenius_norm, method="exact"),
    "Frobenius, Hutchinson": estimate(
        frobenius_norm, method="hutchinson", max_matvecs=30
    ),
    "density": density,
    "root, squared": root,
}


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("exponent", [-498, -100, 3, 100, 498])
def test_powers_of_two_change_no_digit(name, exponent):
    A = matrix()
    right, error = QUANTITIES[name](DenseOperator(A))
    scale = torch.tensor(2.0, dtype=torch.float64) ** exponent
    found, scaled_error = QUANTITIES[name](DenseOperator(A * scale))
    if exponent % 2 == 0 or name != "root, squared":
        torch.testing.assert_close(found / scale, right, rtol=1e-12, atol=0)
    # A residual is rounding.
    if "eigenpairs" not in name:
        torch.testing.assert_close(scaled_error / scale, error, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", [n for n in QUANTITIES if "pairs" not in n])
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_single_precision(name, factor):
    A = matrix().float()
    right, _ = QUANTITIES[name](DenseOperator(A))
    found, _ = QUANTITIES[name](DenseOperator(A * factor))
    found = found.double() / factor
    assert (found - right).norm() <= 1e-3 * right.norm()


@pytest.mark.parametrize("factor", [1e-150, 1e-20, 1.0, 1e13, 1e150])
def test_sketches_are_right_within_their_errors(factor):
    A = matrix()
    for function, right in ((trace, A.trace()), (diagonal, A.diagonal())):
        method = "xtrace" if function is trace else "xdiag"
        result = function(
            DenseOperator(A * factor), method=method, max_matvecs=80, rng=1
        )
        off = (result.value / factor - right).norm()
        assert off <= 4 * (result.stderr / factor).norm() + 1e-12
        assert off <= 0.1 * right.norm()


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_what_is_not_finite_is_an_error(name, value, late):
    class Broken(DenseOperator):
        def _matvec(self, v):
            wild = not late or self.n_matvecs > 7
            return super()._matvec(v) * (value if wild else 1.0)

        def matmat(self, V):
            return torch.stack([self.matvec(v) for v in V.unbind(-1)], -1)

        def to_dense(self):
            eye = torch.eye(self.shape[-1], dtype=self.dtype)
            return self.matmat(eye)

        def trace(self):
            return self.to_dense().diagonal().sum()

    with pytest.raises(LinAlgError, match=r"must be finite\. Got NaN or infinity"):
        QUANTITIES[name](Broken(matrix()))


@pytest.mark.parametrize("name", [n for n in QUANTITIES if "root" not in n])
def test_a_matrix_of_zeros(name):
    A = DenseOperator(torch.zeros(SIZE, SIZE, dtype=torch.float64))
    value, error = QUANTITIES[name](A)
    assert not value.any()
    assert not error.any()
