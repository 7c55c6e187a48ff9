"""Matrices of a network at many θ: each is that of one θ alone."""

import pytest
import torch
from torch import nn

from flatmin.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    GradientCovarianceOperator,
    HessianOperator,
    covariance_eigenpairs,
    ggn_trace,
    hessian_eigenpairs,
    hessian_trace,
    minibatch_eigenpairs,
)
from flatmin.curvature import _eigenpairs as eigenpairs
from flatmin.measures import loss_scaled_alignment, minibatch_gaussianity
from flatmin.risk import EmpiricalRisk

N = 12
close = torch.testing.assert_close


@pytest.fixture(scope="module")
def risk():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        X = torch.randn(N, 3).double()
    return EmpiricalRisk(net, "cross_entropy", X, torch.arange(N) % 3, l2=0.1)


@pytest.fixture(scope="module")
def thetas(risk):
    rng = torch.Generator().manual_seed(1)
    near = torch.randn(2, 2, risk.n_params, generator=rng, dtype=torch.float64)
    return risk.params() + 0.3 * near


def each(function, thetas):
    flat = thetas.flatten(0, 1)
    return torch.stack([function(theta) for theta in flat]).unflatten(0, (2, 2))


BATCHES = torch.arange(N).view(4, 3)
OPERATORS = {
    "H": HessianOperator,
    "G": GGNOperator,
    "F": FisherOperator,
    "empirical F": EmpiricalFisherOperator,
    "Σ": GradientCovarianceOperator,
    "Σ of batches": lambda risk, theta: GradientCovarianceOperator(
        risk, theta, batches=BATCHES
    ),
    "moment of batches": lambda risk, theta: GradientCovarianceOperator(
        risk, theta, batches=BATCHES, centered=False
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name, risk, thetas):
    make = OPERATORS[name]
    operator = make(risk, thetas)
    v = torch.ones(operator.shape[:-1], dtype=torch.float64)
    close(operator.to_dense(), each(lambda t: make(risk, t).to_dense(), thetas))
    close(operator.matvec(v), each(lambda t: make(risk, t).matvec(v[0, 0]), thetas))


def test_labels_that_the_model_draws(risk, thetas):
    """E[sᵢsᵢᵀ] = Hᵢ: the mean over 4000 draws an example is G without the penalty."""
    exact = FisherOperator(risk, thetas).to_dense()
    drawn = FisherOperator(risk, thetas, n_samples=4000, rng=0)
    v = torch.randn(1, 1, 31, generator=torch.Generator().manual_seed(2)).double()
    v = v.expand(2, 2, -1).contiguous()
    right = (exact @ v.unsqueeze(-1)).squeeze(-1)
    error = (drawn.matvec(v) - right).norm(dim=-1) / right.norm(dim=-1)
    assert error.max() < 0.1


@pytest.mark.parametrize("limit", [1 << 27, 1])
def test_eigenpairs_and_traces(limit, risk, thetas, monkeypatch):
    monkeypatch.setattr(eigenpairs, "GRAM_LIMIT", limit)
    for pairs in (
        lambda t: hessian_eigenpairs(risk, t, 3, tol=1e-9, rng=0),
        lambda t: covariance_eigenpairs(risk, t, 3, tol=1e-9, rng=0),
    ):
        values = each(lambda t, pairs=pairs: pairs(t).eigenvalues, thetas)
        close(pairs(thetas).eigenvalues, values)
        assert pairs(thetas).eigenvectors.shape == (2, 2, 31, 3)
    values = each(lambda t: hessian_trace(risk, t).value, thetas)
    close(hessian_trace(risk, thetas).value, values)
    exact = {"rtol": 0.0, "max_sweeps": 100}
    found = ggn_trace(risk, thetas, rng=0, **exact).value
    close(found, each(lambda t: ggn_trace(risk, t, rng=0, **exact).value, thetas))
    batches = BATCHES.expand(2, 2, 4, 3)
    values = each(
        lambda t: minibatch_eigenpairs(risk, t, 2, batches=BATCHES).eigenvalues, thetas
    )
    close(minibatch_eigenpairs(risk, thetas, 2, batches=batches).eigenvalues, values)


@pytest.mark.parametrize(
    "measure",
    [
        loss_scaled_alignment,
        lambda risk, theta: minibatch_gaussianity(risk, theta, batch_size=2, k=2),
        lambda risk, theta: HessianOperator(risk, theta, select="2"),
    ],
)
def test_what_is_of_one_point_is_refused(measure, risk, thetas):
    with pytest.raises(ValueError, match=r"one θ.*one chain"):
        measure(risk, thetas)
