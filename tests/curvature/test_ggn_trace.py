"""The standard error of Tr(G) from the dense Jacobians, and from the sweeps taken."""

import pytest
import torch
from torch import nn

from flatmin.curvature import GGNOperator, ggn_trace
from flatmin.risk import EmpiricalRisk

from .. import oracles
from ._problems import N, randn, rng


@pytest.fixture(scope="module")
def problem():
    """A risk of five outputs, θ, and J Jᵀ of each example."""
    X, y = randn(N, 3), randn(N, 5, seed=1)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed))
    risk = EmpiricalRisk(module, "squared_error", X, y)
    theta = risk.params()
    J = oracles.dense(module, oracles.squared_error, X, y, theta).jacobians
    return risk, theta, J @ J.mT


def test_few_products_suffice_for_the_examples_of_a_batch():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    X, y = randn(N, 3), randn(N, 5, seed=1)
    risk = EmpiricalRisk(module.double(), "squared_error", X, y, batch_norm="batch")
    theta = risk.params()
    G = GGNOperator(risk, theta).to_dense()
    found = ggn_trace(risk, theta, max_sweeps=2, rng=rng())
    assert found.n_matvecs <= 6
    assert abs(float(found) - float(G.trace())) < 4 * float(found.stderr)


@pytest.mark.parametrize("n_sweeps", [2, 3])
def test_the_error_is_that_of_random_signs(problem, n_sweeps):
    """Var zᵀMz = 2 (‖M‖²_F - Σ M²ᵢᵢ), and the squared errors have that mean."""
    risk, theta, products = problem
    M = 2 / 5 * products  # ∂²ℓᵢ/∂f² = 2/5 I
    diagonals = M.diagonal(dim1=1, dim2=2)
    variances = 2 * (M.square().sum((1, 2)) - diagonals.square().sum(1))
    right = float(variances.mean() / n_sweeps / N)
    results = [
        ggn_trace(risk, theta, rng=rng(seed), rtol=0, max_sweeps=n_sweeps)
        for seed in range(100)
    ]
    squares = torch.stack([result.stderr for result in results]).square()
    error = float(squares.std()) / 10
    # A divisor that is off by one would be 1/2 and 2/3 of it.
    assert error < 0.06 * right
    assert abs(float(squares.mean()) - right) < 3 * error


def test_the_error_is_the_spread_of_an_examples_sweeps(problem, monkeypatch):
    risk, theta, _ = problem
    sweeps, sweep = [], risk.gauss_newton_traces

    def watched(*args, **kwargs):
        sweeps.append(sweep(*args, **kwargs))
        return sweeps[-1]

    monkeypatch.setattr(risk, "gauss_newton_traces", watched)
    result = ggn_trace(risk, theta, rng=rng(), rtol=0, max_sweeps=4)
    draws = torch.cat(sweeps).numpy()
    assert draws.shape == (4, N)
    assert float(result.value) == pytest.approx(draws.mean())
    within = draws.var(0, ddof=1).mean()
    assert float(result.stderr) == pytest.approx((within / 4 / N) ** 0.5)


def test_sweeps_that_share_a_run_are_those_made_one_by_one(problem):
    risk, theta, _ = problem
    generator = rng(3)
    alone = [risk.gauss_newton_traces(theta, generator) for _ in range(3)]
    together = risk.gauss_newton_traces(theta, rng(3), n_sweeps=3)
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=0)
    with pytest.raises(ValueError, match="Got n_sweeps=2 and rng=None; pass rng"):
        risk.gauss_newton_traces(theta, n_sweeps=2)


def softmax_risk(X, y, n_outputs, **weights):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, n_outputs))
    return EmpiricalRisk(module.double(), "cross_entropy", X, y, **weights)


def trace_of_products(risk, theta):
    point = risk.linearize(theta)
    eye = torch.eye(risk.n_params, dtype=theta.dtype)
    return sum(float(v @ point.ggn(v)) for v in eye)


@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize("more", [0, 400])
@pytest.mark.parametrize("n_outputs", [3, 5])
def test_few_examples_are_exact(n, more, n_outputs):
    """Signs of three outputs agree in one of four pairs of sweeps: no spread is seen.

    Also where few of many examples have a weight.
    """
    X, y = randn(n + more, 4), torch.arange(n + more) % 3
    weights = torch.tensor([1.0] * n + [0.0] * more)
    risk = softmax_risk(X, y, n_outputs, sample_weight=weights)
    theta = risk.params()
    right = trace_of_products(risk, theta)
    for seed in range(20):
        found = ggn_trace(risk, theta, rng=rng(seed))
        assert float(found.stderr) == 0
        assert float(found.value) == pytest.approx(right, rel=1e-9)


def test_the_error_where_few_examples_are_not_saturated():
    """Most of G is of some of 400 examples: the z-scores are those of a t variable."""
    X = randn(400, 4)
    y = (X @ randn(4, 5, seed=1)).argmax(1)
    risk = softmax_risk(X, y, 5)
    theta = risk.params()
    for _ in range(1500):
        theta = theta - risk.gradient(theta)
    right, z = trace_of_products(risk, theta), []
    for seed in range(100):
        found = ggn_trace(risk, theta, rng=rng(seed))
        error = float(found.value) - right
        z.append(error / float(found.stderr) if found.stderr else error / right * 1e9)
    z = torch.tensor(z)
    assert z.square().mean().sqrt() < 1.25
    assert z.abs().max() < 4.5
