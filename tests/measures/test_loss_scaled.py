"""The loss-scaled alignment and the bound that it gives."""

import math

import pytest
import torch
from torch import nn

from flatmin.measures import loss_scaled_alignment, trace_hessian_covariance
from flatmin.risk import EmpiricalRisk, LinearRegressionRisk

from .. import oracles
from . import _problems


def test_a_regression():
    risk, theta, H, S = _problems.regression()
    mu = (S @ H).trace() / (2 * risk.value(theta) * H.norm() ** 2)
    result = loss_scaled_alignment(risk, theta)
    assert float(result) == pytest.approx(float(mu))
    assert float(result.curvature_norm) == pytest.approx(float(H.norm()))
    assert result.stderr == 0


def test_a_network_of_two_outputs():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        X, y = torch.randn(15, 3).double(), torch.randn(15, 2).double()
    risk = EmpiricalRisk(module, "squared_error", X, y)
    theta = risk.params()
    dense = oracles.dense(module, oracles.squared_error, X, y, theta)
    G = dense.gauss_newton
    mu = (dense.covariance @ G).trace() / (2 * dense.value * G.norm() ** 2)
    assert float(loss_scaled_alignment(risk, theta)) == pytest.approx(float(mu))


def test_the_scale_of_the_loss_does_not_matter():
    risk, theta, _, _ = _problems.regression()
    scaled = LinearRegressionRisk(3 * risk.X, 3 * risk.y)
    first, second = (float(loss_scaled_alignment(r, theta)) for r in (risk, scaled))
    assert second == pytest.approx(first)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_residuals_that_know_nothing_of_the_slopes(n_outputs):
    """Then Σ is (2L/C) G, and μ = 1/C."""
    N, X = 4000, _problems.randn(4000, 2)
    y = _problems.randn(N, n_outputs, seed=1)
    module = nn.Linear(2, n_outputs, bias=False).double()
    risk = EmpiricalRisk(module, "squared_error", X, y)
    result = loss_scaled_alignment(risk, 0 * risk.params())
    assert float(result) == pytest.approx(1 / n_outputs, rel=0.05)


def test_what_a_step_of_noise_adds():
    """(η²/2m) Tr(HΣ) = (η²/m) μ ‖H‖² L, which is L itself at the bound."""
    risk, theta, H, _ = _problems.regression()
    result, m = loss_scaled_alignment(risk, theta), 5
    lr = result.norm_bound(1.0, m) / float(H.norm())
    assert float(H.norm()) == pytest.approx(result.norm_bound(lr, m))
    added = lr**2 / (2 * m) * trace_hessian_covariance(risk, theta).value
    torch.testing.assert_close(added, risk.value(theta))


def test_an_estimate_has_an_honest_error():
    risk, theta, H, S = _problems.regression()
    mu = (S @ H).trace() / (2 * risk.value(theta) * H.norm() ** 2)
    scores = []
    for seed in range(20):
        result = loss_scaled_alignment(
            *(risk, theta), k=3, max_matvecs=25, rtol=1e-3, rng=seed
        )
        assert result.stderr > 0
        scores.append(float((result.value - mu) / result.stderr))
    assert sum(abs(score) < 3 for score in scores) >= 17
    assert max(map(abs, scores)) > 0.2


def test_the_bound_grows_with_the_batch_and_falls_with_the_rate():
    risk, theta, _, _ = _problems.regression()
    result = loss_scaled_alignment(risk, theta)
    bound = result.norm_bound(0.1, 4)
    assert bound == pytest.approx(math.sqrt(4 / float(result)) / 0.1)
    assert result.norm_bound(0.2, 16) == pytest.approx(bound)
