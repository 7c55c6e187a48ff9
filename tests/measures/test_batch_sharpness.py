"""E[g_BᵀH_Bg_B/‖g_B‖²]: every batch in dense float64, and what is drawn."""

from itertools import combinations

import pytest
import torch

from flatmin.measures import batch_sharpness
from flatmin.risk import (
    EmpiricalRisk,
    LinearRegressionRisk,
    QuadraticRisk,
    TwoBasinsRisk,
)

from .. import oracles
from ._problems import randn

N = 6
WEIGHTS = torch.linspace(0.5, 2, N, dtype=torch.float64)


def module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        return torch.nn.Sequential(*layers).double()


X, Y = randn(N, 3), torch.arange(N) % 2


def by_hand(m, l2=0.0):
    """Return the quotient of every batch."""
    net = module()
    theta = oracles.flat_parameters(net)
    losses = oracles.cross_entropy
    found = []
    for batch in combinations(range(N), m):
        scales = (WEIGHTS * N / WEIGHTS.sum())[list(batch)]
        parts = [
            oracles.dense(net, losses, X[i : i + 1], Y[i : i + 1], theta) for i in batch
        ]
        g = sum(s * p.gradient for s, p in zip(scales, parts, strict=True)) / m
        H = sum(s * p.hessian for s, p in zip(scales, parts, strict=True)) / m
        g, H = g + l2 * theta, H + l2 * torch.eye(len(theta), dtype=theta.dtype)
        found.append(g @ H @ g / (g @ g))
    return torch.stack(found)


def risk(l2=0.0):
    return EmpiricalRisk(
        module(), "cross_entropy", X, Y, sample_weight=WEIGHTS, l2=l2, chunk_size=4
    )


@pytest.mark.parametrize(("m", "l2"), [(1, 0.0), (2, 0.3), (N, 0.0)])
def test_every_batch(m, l2):
    found = batch_sharpness(risk(l2), risk().params(), batch_size=m)
    expected = by_hand(m, l2)
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-10)
    assert (float(found.stderr), found.n_matvecs) == (0, len(expected))


def test_drawn_batches_have_an_honest_error():
    expected = float(by_hand(2).mean())
    theta, network = risk().params(), risk()
    drawn = [
        batch_sharpness(network, theta, batch_size=2, n_draws=12, rng=seed)
        for seed in range(40)
    ]
    scores = torch.stack([(e.value - expected) / e.stderr for e in drawn])
    assert 0.6 < scores.square().mean().sqrt() < 1.6
    assert all(e.n_matvecs == 12 and e.stderr > 0 for e in drawn)


def test_of_the_whole_it_is_the_curvature_along_the_gradient():
    A = torch.diag(torch.tensor([5.0, 1.0])).double()
    quadratic = QuadraticRisk(A, torch.eye(2).double().repeat(4, 1))
    theta = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double()
    found = batch_sharpness(quadratic, theta, batch_size=8)
    # g₀ = (5, 2) and (15, 0).
    torch.testing.assert_close(found.value, torch.tensor([129 / 29, 5.0]).double())


def test_formulas_and_a_network_of_one_function():
    y = randn(N, seed=1)
    analytic, theta = LinearRegressionRisk(X, y), randn(3, seed=2)
    line = torch.nn.Linear(3, 1, bias=False).double()
    network = EmpiricalRisk(line, "squared_error", X, y)
    for m in (1, 2, 3):
        found = batch_sharpness(analytic, theta, batch_size=m)
        assert float(found) == pytest.approx(
            float(batch_sharpness(network, theta, batch_size=m)), rel=1e-10
        )


def test_a_subset_of_formulas():
    basins = TwoBasinsRisk(randn(5, 2) / 10, 0.4)
    chosen, theta = torch.tensor([4, 1]), torch.ones(3, 2).double()
    part = basins.subset(chosen)
    own = TwoBasinsRisk(basins.offsets[chosen], 0.4)
    for word in ("value", "gradient", "hessian", "gradient_covariance"):
        expected = getattr(own, word)(theta)
        torch.testing.assert_close(getattr(part, word)(theta), expected)
    with pytest.raises(ValueError, match="Gauss-Newton matrix of some"):
        part.gauss_newton(theta)
    with pytest.raises((ValueError, IndexError), match="indices"):
        basins.subset(torch.tensor([5])).value(theta)


def test_a_batch_that_is_fitted_is_refused():
    y = X @ torch.ones(3).double()
    fitted = LinearRegressionRisk(X, y)
    with pytest.raises(ValueError, match=r"more than rounding. Got ‖g_B‖ = .*larger"):
        batch_sharpness(fitted, torch.ones(3).double(), batch_size=2)


def test_a_batch_has_at_most_all_examples():
    with pytest.raises(ValueError, match=f"batch_size must be .*{N}.* Got 7"):
        batch_sharpness(risk(), risk().params(), batch_size=7)
