"""Measures of a loss with the statistics of the full batch: right, or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin import measures
from flatmin.measures import SHARPNESS_MEASURES, negative_mass, segment_profile
from flatmin.risk import EmpiricalRisk, FunctionRisk

N = 12


def numbers(*shape):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@pytest.fixture(scope="module")
def pair():
    """Return a risk, and the same loss as a potential of PyTorch's functions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Linear(2, 2)
        module = nn.Sequential(*layers).double()
    X, y = numbers(N, 3), torch.arange(N) % 2

    def loss(theta):
        W, b, gamma, beta, V, c = theta.split([6, 2, 2, 2, 4, 2], -1)
        h = X @ W.unflatten(-1, (2, 3)).mT + b.unsqueeze(-2)
        variance, mean = torch.var_mean(h, -2, correction=0, keepdim=True)
        h = (h - mean) / (variance + 1e-5).sqrt()
        h = torch.tanh(gamma.unsqueeze(-2) * h + beta.unsqueeze(-2))
        logits = h @ V.unflatten(-1, (2, 2)).mT + c.unsqueeze(-2)
        one_hot = F.one_hot(y, 2).double()
        return -(one_hot * logits.log_softmax(-1)).sum((-2, -1)) / N

    risk = EmpiricalRisk(module, "cross_entropy", X, y, batch_norm="batch")
    return risk, FunctionRisk(loss, risk.params())


def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "name", sorted({*SHARPNESS_MEASURES} - {"fisher_rao", "batch"})
)
def test_a_sharpness_is_that_of_the_potential(name, pair):
    measure = SHARPNESS_MEASURES[name]
    drawn = {} if name in ("sam", "asam") else {"rng": rng}
    found, expected = (
        measure(risk, risk.params(), **{key: make() for key, make in drawn.items()})
        for risk in pair
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) > 0


def test_a_profile_and_negative_mass_are_those_of_the_potential(pair):
    a, b = pair[0].params(), pair[0].params() + numbers(18)
    found, expected = (segment_profile(risk, a, b, n_points=5) for risk in pair)
    torch.testing.assert_close(found.loss, expected.loss)
    found, expected = (negative_mass(risk, b, rng=rng()) for risk in pair)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_fisher_rao_norm_is_of_the_whole_map(pair):
    risk, _ = pair
    theta = risk.params()
    J = torch.stack(
        [risk.vjp(theta, u.view(N, 2)) for u in torch.eye(2 * N, dtype=torch.float64)]
    )
    p = risk.outputs(theta).softmax(1)
    inner = torch.block_diag(*(torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)))
    found = measures.fisher_rao_norm(risk, theta)
    assert float(found) == pytest.approx(float(theta @ J.T @ inner @ J @ theta / N))


@pytest.mark.parametrize(
    "measure",
    [
        lambda r, t: measures.alignment(r, t, 2),
        lambda r, t: measures.trace_hessian_covariance(r, t),
        lambda r, t: measures.curvature_noise_scale(r, t),
        lambda r, t: measures.gradient_noise(r, t),
        lambda r, t: measures.gradient_signal_to_noise(r, t),
        lambda r, t: measures.minibatch_gaussianity(r, t, batch_size=2),
        lambda r, t: measures.noise_spectrum(r, t),
        lambda r, t: measures.non_uniformity(r, t),
        lambda r, t: measures.alignment_by_layer(r, t, 1),
        lambda r, t: measures.loss_scaled_alignment(r, t),
        lambda r, t: measures.batch_sharpness(r, t, batch_size=4),
        lambda r, t: measures.tic(r, t, damping=1.0),
        lambda r, t: measures.fisher_rao_norm(r, t, empirical=True),
    ],
)
def test_measures_of_the_noise_are_refused(measure, pair):
    risk, _ = pair
    with pytest.raises(ValueError, match="needs the loss of each example by itself"):
        measure(risk, risk.params())
