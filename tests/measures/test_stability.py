"""Edges of stability and negative mass."""

import itertools
import math

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from flatmin.linalg import DenseOperator, spectral_density
from flatmin.measures import (
    density_negative_mass,
    edge_of_stability,
    max_eigenvalue,
    negative_mass,
    non_uniformity,
    non_uniformity_bound,
)
from flatmin.risk import EmpiricalRisk, LinearRegressionRisk, QuadraticRisk

from .. import oracles
from ..curvature import _problems as networks
from . import _problems


def test_the_edge_of_gradient_descent():
    risk, theta, H, _ = _problems.regression()
    lr = float(2 / torch.linalg.eigvalsh(H)[-1])
    assert float(edge_of_stability(risk, theta, lr=lr)) == pytest.approx(1)
    for factor in (0.95, 1.05):
        at = theta.clone()
        for _ in range(300):
            at = at - factor * lr * (risk.gradient(at) - risk.gradient(0 * at))
        assert (at.norm() > 100) == (factor > 1)


def test_an_eigenvalue_that_has_not_converged_has_no_error_that_is_known():
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(300, 150, generator=rng, dtype=torch.float64)
    net = nn.Linear(150, 1, bias=False, dtype=torch.float64)
    risk = EmpiricalRisk(net, "squared_error", X, torch.zeros(300, 1).double())
    with pytest.warns(ConvergenceWarning):
        found = max_eigenvalue(risk, risk.params(), tol=1e-10, max_matvecs=5)
    largest = float(torch.linalg.eigvalsh(2 * X.T @ X / 300)[-1])
    assert float(found) < 0.99 * largest
    assert math.isnan(found.stderr)
    assert float(max_eigenvalue(risk, risk.params()).stderr) == 0


def test_non_uniformity_of_a_regression():
    risk, theta, H, _ = _problems.regression()
    squares = (2 * risk.X.square().sum(1, keepdim=True) * risk.X).T @ (2 * risk.X)
    variance = squares / _problems.N - H @ H
    expected = torch.linalg.eigvalsh(variance)[-1].sqrt()
    assert float(non_uniformity(risk, theta)) == pytest.approx(float(expected))


def test_non_uniformity_that_has_not_converged_says_so():
    """By its own words: those of the solver are of a matrix that nobody has named."""
    X = torch.randn(200, 100, generator=torch.Generator().manual_seed(0))
    risk = LinearRegressionRisk(X, torch.zeros(200))
    with pytest.warns(ConvergenceWarning, match=r"s² has not converged to tol=1e-12"):
        found = non_uniformity(risk, torch.zeros(100), tol=1e-12)
    X = X.double()
    squares = (4 * X.square().sum(1, keepdim=True) * X).T @ X / 200
    right = torch.linalg.eigvalsh(squares - (2 * X.T @ X / 200) @ (2 * X.T @ X / 200))
    assert float(found) == pytest.approx(float(right[-1].sqrt()), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_non_uniformity_of_a_network(dtype):
    risk, theta = networks.empirical(dtype=dtype)
    module, X, y, at = networks.network()
    w = networks.WEIGHTS / networks.WEIGHTS.mean()
    hessians = torch.stack(
        [
            w[i]
            * oracles.dense(
                module, oracles.cross_entropy, X[i : i + 1], y[i : i + 1], at
            ).hessian
            for i in range(len(X))
        ]
    )
    mean = hessians.mean(0)
    torch.testing.assert_close(mean, networks.oracle().hessian)
    variance = (hessians @ hessians).mean(0) - mean @ mean
    expected = torch.linalg.eigvalsh(variance)[-1].sqrt()
    assert float(non_uniformity(risk, theta)) == pytest.approx(
        float(expected), rel=1e-3
    )


def test_one_hessian_for_all_examples_is_uniform():
    risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 2.0])), torch.eye(2))
    assert float(non_uniformity(risk, torch.zeros(2))) == 0


def test_the_bound_is_where_the_noise_alone_keeps_the_second_moment():
    """All batches of m out of N in one dimension, one by one."""
    x = torch.tensor([0.5, 1.0, 1.5, 2.5, 3.0], dtype=torch.float64)
    N, m = len(x), 2
    risk = LinearRegressionRisk(x.unsqueeze(1), torch.zeros(N).double())
    s = float(non_uniformity(risk, torch.zeros(1).double()))
    h = float(risk.hessian(torch.zeros(1).double()))
    for lr in (0.01, 0.1, 0.3):
        batches = torch.tensor(list(itertools.combinations(2 * x.square(), m)))
        moment = float((1 - lr * batches.mean(1)).square().mean())
        noise = (s / non_uniformity_bound(lr, m, N)) ** 2
        assert moment == pytest.approx((1 - lr * h) ** 2 + noise)


def test_the_bound_at_its_ends():
    assert non_uniformity_bound(0.1, 7, 7) == math.inf
    assert non_uniformity_bound(0.1, 1, 7) == pytest.approx(10)
    with pytest.raises(ValueError, match=r"between 1 and N = 7\. Got 8"):
        non_uniformity_bound(0.1, 8, 7)


def test_negative_mass_of_a_network():
    risk, theta = networks.empirical()
    values = torch.linalg.eigvalsh(networks.oracle().hessian)
    expected = values.clamp(max=0).sum().abs() / values.abs().sum()
    result = negative_mass(risk, theta)
    assert expected > 0.01
    assert float(result) == pytest.approx(float(expected))
    assert result.stderr == 0
    at = risk.layout.indices("0")
    block = torch.linalg.eigvalsh(networks.oracle().hessian[at][:, at])
    expected = block.clamp(max=0).sum().abs() / block.abs().sum()
    assert float(negative_mass(risk, theta, select="0")) == pytest.approx(
        float(expected)
    )


def test_an_estimated_mass_has_an_honest_error():
    values = torch.cat([torch.linspace(-2, -1, 30), torch.linspace(1, 4, 70)]).double()
    Q = torch.linalg.qr(_problems.randn(100, 100))[0]
    operator = DenseOperator(Q * values @ Q.T)
    expected = values.clamp(max=0).sum().abs() / values.abs().sum()
    scores = []
    for seed in range(30):
        density = spectral_density(
            operator, method="lanczos", n_probes=8, n_steps=30, rng=seed
        )
        result = density_negative_mass(density)
        scores.append(float((result.value - expected) / result.stderr))
    assert sum(abs(score) < 3 for score in scores) >= 26
    assert sum(abs(score) > 0.3 for score in scores) >= 10


def test_a_zero_matrix_has_no_mass():
    risk = QuadraticRisk(torch.zeros(3, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"Σ\|λ\|, which must be above 0\. Got 0"):
        negative_mass(risk, torch.zeros(3))


def test_a_convex_loss_has_none():
    X = _problems.randn(20, 3)
    module = nn.Linear(3, 1).double()
    risk = EmpiricalRisk(module, "binary_cross_entropy", X, (X[:, 0] > 0).long())
    assert float(negative_mass(risk, risk.params())) < 1e-12


def test_what_a_penalty_takes_by_rounding_is_told():
    """(H - λ)v is a difference: of Hessians near 1e-4 λ, float32 keeps three digits."""
    rng = torch.Generator().manual_seed(0)
    X = 0.01 * torch.randn(60, 4, generator=rng, dtype=torch.float64)
    y = torch.randint(0, 3, (60,), generator=rng)
    module = nn.Linear(4, 3, bias=False).double()
    theta = oracles.flat_parameters(module)
    # Of a linear module the Gauss-Newton matrices are the Hessians.
    hessians = oracles.dense(module, oracles.cross_entropy, X, y, theta).gauss_newtons
    mean = hessians.mean(0)
    matrix = (hessians @ hessians).mean(0) - mean @ mean
    expected = float(torch.linalg.eigvalsh(matrix)[-1].sqrt())
    risk = EmpiricalRisk(module, "cross_entropy", X, y, l2=1.0, dtype=torch.float32)
    found = non_uniformity(risk, risk.params(), tol=1e-4)
    assert 0 < float(found.stderr) < 0.05 * expected
    assert abs(float(found) - expected) < 3 * float(found.stderr)
