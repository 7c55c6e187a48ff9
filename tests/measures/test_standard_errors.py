"""Standard errors of measures, from the dense matrices and the probes drawn."""

import numpy as np
import pytest
import torch

from flatmin.linalg import DenseOperator, _frobenius, spectral_density
from flatmin.measures import (
    density_negative_mass,
    negative_mass,
    noise_spectrum,
)
from flatmin.risk import QuadraticRisk

from ..linalg._matrices import with_spectrum
from . import _problems


@pytest.fixture
def vectors(monkeypatch):
    """The random signs that norms are estimated from."""
    drawn, draw = [], _frobenius.rademacher

    def watched(*args):
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(_frobenius, "rademacher", watched)
    return drawn


@pytest.mark.parametrize("n_probes", [3, 8])
def test_the_error_of_the_negative_mass(n_probes):
    """f = λ₋ - r |λ| has the mean 0; a mean over probes has (2 Var f / (D (n - 2)))^½.

    Three eigenvalues take three steps: the nodes are they, the weights are drawn.
    """
    D, values = 60, torch.tensor([-3.0] * 20 + [1.0] * 25 + [4.0] * 15)
    density = spectral_density(
        DenseOperator(with_spectrum(values)),
        method="lanczos",
        n_probes=n_probes,
        n_steps=3,
        rng=0,
    )
    nodes, weights = density.nodes.numpy(), density.weights.numpy() / n_probes
    np.testing.assert_allclose(nodes, [[-3.0, 1, 4]] * n_probes, rtol=1e-9)
    size = (weights * np.abs(nodes)).sum()
    r = 3 * weights[:, 0].sum() / size
    f = np.where(nodes < 0, 3.0, 0.0) - r * np.abs(nodes)
    variance = (weights * f**2).sum()
    result = density_negative_mass(density)
    assert float(result.value) == pytest.approx(r, rel=1e-9)
    error = (2 * variance / D / (n_probes - 2)) ** 0.5 / size
    assert float(result.stderr) == pytest.approx(error, rel=1e-9)


def test_the_negative_mass_of_many_parameters():
    """The same of a risk: 2100 parameters are too many for a dense matrix."""
    values = torch.ones(2100).double()
    values[::3] = -1
    risk = QuadraticRisk(torch.diag(values), torch.zeros(1, 2100).double())
    result = negative_mass(risk, torch.zeros(2100).double(), n_probes=4, n_steps=3)
    r = float(result.value)
    # Of a diagonal matrix zᵀf(A)z has no variance; the error is an upper bound.
    assert r == pytest.approx(1 / 3, rel=1e-9)
    assert float(result.stderr) == pytest.approx((2 * r * (1 - r) / 2100 / 2) ** 0.5)


def deflated(matrix, k):
    """What the k largest eigenpairs leave of a matrix."""
    values, U = np.linalg.eigh(matrix)
    return matrix - (U[:, -k:] * values[-k:]) @ U[:, -k:].T


def norm_and_error(matrix, k, vectors):
    """‖A‖_F and its error, from k exact eigenpairs and ‖Rz‖² of the rest."""
    R, z = deflated(matrix.numpy(), k), torch.stack(vectors).numpy()
    draws = ((z @ R) ** 2).sum(1)
    largest = np.linalg.eigvalsh(matrix)[-k:]
    norm = ((largest**2).sum() + draws.mean()) ** 0.5
    return norm, draws.std(ddof=1) / len(draws) ** 0.5 / (2 * norm)


def test_the_error_of_a_norm_and_of_the_effective_rank(vectors):
    """Tr(Σ)² / ‖Σ‖²_F: twice the relative error of the norm."""
    risk, theta, _, S = _problems.regression()
    result = noise_spectrum(*(risk, theta, 3), tol=1e-9, rtol=0, max_matvecs=20, rng=0)
    assert len(vectors) == 20
    norm, stderr = norm_and_error(S, 3, vectors)
    assert stderr > 0.01 * norm
    assert float(result.norm.value) == pytest.approx(norm, rel=1e-6)
    assert float(result.norm.stderr) == pytest.approx(stderr, rel=1e-6)
    rank = float(S.trace()) ** 2 / norm**2
    found = result.effective_rank
    assert float(found.value) == pytest.approx(rank, rel=1e-6)
    assert float(found.stderr) == pytest.approx(rank * 2 * stderr / norm, rel=1e-6)
