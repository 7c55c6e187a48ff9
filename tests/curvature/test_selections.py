"""Fisher matrices, minibatch covariances, and blocks of some parameters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GGNOperator,
    GradientCovarianceOperator,
    HessianOperator,
)
from flatmin.risk import EmpiricalRisk

from ._problems import randn, regression

close = torch.testing.assert_close
N = 9


def network(n_out=3):
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, n_out)).double()


def data(seed=0):
    return torch.randn(
        N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


LABELS = torch.arange(N) % 3
WEIGHTS = torch.linspace(0.5, 2, N)
PROBLEMS = {
    "classes": (network(), "cross_entropy", LABELS),
    "numbers": (network(2), "squared_error", data(1)[:, :2]),
    "two labels": (network(2), "binary_cross_entropy", (data(2)[:, :2] > 0).double()),
    "positions": (
        nn.Sequential(network(6), nn.Unflatten(1, (3, 2))),
        "cross_entropy",
        torch.stack([LABELS, LABELS.flip(0)], 1),
    ),
}


@pytest.fixture(params=PROBLEMS)
def risk(request):
    module, loss, y = PROBLEMS[request.param]
    return EmpiricalRisk(module, loss, data(), y, sample_weight=WEIGHTS, chunk_size=4)


def test_the_exact_fisher_matrix_is_gauss_newton(risk):
    theta = risk.params()
    exact = FisherOperator(risk, theta).to_dense()
    close(exact, GGNOperator(risk, theta).to_dense())


def test_the_sampled_fisher_matrix_has_it_as_its_mean(risk):
    theta = risk.params()
    draws = torch.stack(
        [FisherOperator(risk, theta, n_samples=8, rng=s).to_dense() for s in range(30)]
    )
    error = draws.mean(0) - FisherOperator(risk, theta).to_dense()
    stderr = draws.std(0) / len(draws) ** 0.5
    close(draws[0], draws[0].mT)
    # Every entry, so the largest of some 600: beyond 5 standard errors is none.
    assert (error.abs() <= 5 * stderr + 1e-12).all()
    assert (stderr > 0).any()


def test_labels_are_drawn_once_and_by_the_seed(risk):
    theta = risk.params()
    v = torch.ones_like(theta)
    one, other = (FisherOperator(risk, theta, n_samples=2, rng=3) for _ in range(2))
    close(one @ v, other @ v, rtol=0, atol=0)
    close(one @ v, one @ v, rtol=0, atol=0)
    assert not torch.equal(one @ v, FisherOperator(risk, theta, n_samples=2, rng=4) @ v)


def test_fisher_needs_a_likelihood_and_a_sample():
    def loss(f, y):
        return F.cross_entropy(f, y, reduction="none")

    risk = EmpiricalRisk(network(), loss, data(), LABELS)
    with pytest.raises(TypeError, match=r"needs a likelihood.*Got the loss loss"):
        FisherOperator(risk, risk.params())
    risk = EmpiricalRisk(network(), "cross_entropy", data(), LABELS)
    with pytest.raises(
        ValueError, match=r"n_samples must be an integer of at least 1.*Got 0"
    ):
        FisherOperator(risk, risk.params(), n_samples=0)


def test_the_empirical_fisher_matrix(risk):
    theta = risk.params()
    rows = torch.cat(list(risk.per_example_gradients(theta)))
    operator = EmpiricalFisherOperator(risk, theta)
    eye = torch.eye(len(theta), dtype=theta.dtype)
    close(operator.matmat(eye), rows.mT @ rows / N)
    close(operator.to_dense(), rows.mT @ rows / N)
    close(operator.trace(), rows.square().sum() / N)


@pytest.mark.parametrize("centered", [True, False])
def test_minibatches(risk, centered):
    theta = risk.params()
    batches = torch.tensor([[0, 1], [2, 2], [5, 8], [1, 7]])
    rows = torch.cat(list(risk.per_example_gradients(theta)))[batches].mean(1)
    expected = rows.mT.cov() if centered else rows.mT @ rows / 4
    operator = GradientCovarianceOperator(
        risk, theta, batches=batches, centered=centered
    )
    eye = torch.eye(len(theta), dtype=theta.dtype)
    close(operator.matmat(eye), expected)
    close(operator.to_dense(), expected)
    close(operator.trace(), expected.trace())


OPERATORS = {
    "H": HessianOperator,
    "G": GGNOperator,
    "F": FisherOperator,
    "Σ": GradientCovarianceOperator,
    "EF": EmpiricalFisherOperator,
}


@pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize(
    ("select", "kept"),
    [
        ("2", slice(15, None)),
        ("*.bias", [12, 13, 14, *range(24, 27)]),
        (["2.bias", "0.weight"], [*range(12), *range(24, 27)]),
        ("0.weight", slice(0, 12)),
    ],
)
def test_some_parameters(make, select, kept):
    module, loss, y = PROBLEMS["classes"]
    risk = EmpiricalRisk(module, loss, data(), y)
    theta = risk.params()
    whole = make(risk, theta).to_dense()
    part = make(risk, theta, select=select)
    expected = whole[kept][:, kept]
    assert part.shape == expected.shape
    close(part.matmat(torch.eye(len(expected), dtype=theta.dtype)), expected)
    close(part.to_dense(), expected)
    close(part.trace(), expected.trace())


def test_names_that_are_not_there():
    module, loss, y = PROBLEMS["classes"]
    risk = EmpiricalRisk(module, loss, data(), y)
    theta = risk.params()
    with pytest.raises(ValueError, match=r"Got 'head'; there are 0.weight, 0.bias"):
        HessianOperator(risk, theta, select="head")
    with pytest.raises(ValueError, match="at least two batches"):
        GradientCovarianceOperator(risk, theta, batches=torch.zeros(1, 2).long())
    analytic = regression()
    with pytest.raises(ValueError, match="LinearRegressionRisk have none"):
        HessianOperator(analytic, randn(analytic.n_params), select="x")
