"""The sharpness measures by name: closed forms, and what a rescaling changes."""

import math

import pytest
import torch
from torch import nn

from flatmin.linalg import Estimate
from flatmin.measures import (
    SHARPNESS_MEASURES,
    adaptive_expected_sharpness,
    asam_sharpness,
    fisher_rao_norm,
    max_eigenvalue,
    sam_sharpness,
    trace_sharpness,
)
from flatmin.risk import EmpiricalRisk, LinearRegressionRisk, QuadraticRisk

from ..curvature import _problems

A = torch.tensor([[5.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 0.25]]).double()
THETA = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
RISK = QuadraticRisk(A, torch.zeros(1, 3, dtype=torch.float64))
CHAINS = torch.stack([THETA, 2 * THETA, -THETA])
INVARIANT = {"asam", "adaptive_expected", "fisher_rao"}


def rise(step):
    return RISK.value(THETA + step) - RISK.value(THETA)


@pytest.mark.parametrize("name", SHARPNESS_MEASURES)
def test_what_they_have_in_common(name):
    measure, before = SHARPNESS_MEASURES[name], THETA.clone()
    state = torch.get_rng_state()
    result = measure(RISK, THETA)
    assert isinstance(result, Estimate)
    assert float(result) == float(result.value) > 0
    assert result.value.dtype == result.stderr.dtype == torch.float64
    assert "expected" not in name or result.stderr > 0
    assert measure(RISK, THETA).value == result.value
    assert torch.equal(THETA, before)
    assert torch.equal(torch.get_rng_state(), state)
    chains = measure(RISK, CHAINS)
    assert chains.value.shape == chains.stderr.shape == (3,)


@pytest.mark.parametrize("name", SHARPNESS_MEASURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_networks_risk(name, dtype):
    result = SHARPNESS_MEASURES[name](*_problems.empirical(dtype=dtype))
    other = SHARPNESS_MEASURES[name](*_problems.empirical(chunk_size=12))
    error = 4 * (result.stderr.square() + other.stderr.square()).sqrt()
    if dtype == torch.float64:
        error = 1e-9
    assert abs(result.value - other.value) <= error + 0.01 * abs(other.value)


def test_trace():
    result = trace_sharpness(RISK, THETA, sigma=0.2)
    assert float(result) == pytest.approx(0.02 * float(A.trace()), rel=1e-12)
    assert (float(result.stderr), result.n_matvecs) == (0, 3)


def test_an_estimated_trace_has_an_honest_error():
    A = torch.diag(torch.linspace(-1, 3, 60, dtype=torch.float64))
    A = A + 0.1  # off the diagonal too, else random signs are exact
    risk = QuadraticRisk(A, torch.zeros(1, 60, dtype=torch.float64))
    theta = torch.zeros(60, dtype=torch.float64)
    scores = []
    for seed in range(40):
        result = trace_sharpness(risk, theta, sigma=1.0, max_matvecs=30, rng=seed)
        assert result.stderr > 0
        scores.append(float((result.value - A.trace() / 2) / result.stderr))
    assert sum(abs(score) < 2.5 for score in scores) >= 34


def test_max_eigenvalue():
    expected = torch.linalg.eigvalsh(A)[-1]
    assert float(max_eigenvalue(RISK, THETA)) == pytest.approx(float(expected))
    risk, theta = _problems.empirical()
    largest = torch.linalg.eigvalsh(_problems.oracle().hessian)[-1]
    assert float(max_eigenvalue(risk, theta)) == pytest.approx(float(largest))


def test_it_is_the_largest_and_not_the_largest_in_magnitude():
    theta = torch.zeros(3, dtype=torch.float64)
    assert float(max_eigenvalue(_problems.saddle(), theta)) == pytest.approx(2)


def test_sam():
    g = A @ THETA
    expected = rise(0.1 * g / g.norm())
    assert float(sam_sharpness(RISK, THETA, rho=0.1)) == pytest.approx(float(expected))


def test_asam():
    T = THETA.abs() + 0.01
    g = A @ THETA
    expected = rise(0.1 * T**2 * g / (T * g).norm())
    result = asam_sharpness(RISK, THETA, rho=0.1, eta=0.01)
    assert float(result) == pytest.approx(float(expected))


def test_one_step_is_below_the_maximum_in_the_ball():
    """For a quadratic with gradient the maximum is found by brute force."""
    rng = torch.Generator().manual_seed(0)
    steps = torch.randn(20_000, 3, generator=rng, dtype=torch.float64)
    steps = 0.5 * steps / steps.norm(dim=1, keepdim=True)
    largest = (RISK.value(THETA + steps) - RISK.value(THETA)).max()
    one_step = float(sam_sharpness(RISK, THETA, rho=0.5))
    assert 0.9 * float(largest) < one_step <= float(largest) * (1 + 1e-3)


@pytest.mark.parametrize("measure", [sam_sharpness, asam_sharpness])
def test_without_a_gradient_there_is_no_step(measure):
    assert float(measure(RISK, torch.zeros(3, dtype=torch.float64))) == 0


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_adaptive(sigma):
    risk = QuadraticRisk(A, torch.zeros(1, 3, dtype=torch.float64), THETA)
    expected = sigma**2 / 2 * (THETA.square() * A.diagonal()).sum()
    result = adaptive_expected_sharpness(risk, THETA, sigma=sigma, n_draws=4000)
    assert abs(result.value - expected) < 4 * result.stderr
    assert result.stderr < 0.05 * expected
    off = adaptive_expected_sharpness(RISK, THETA, sigma=sigma, absolute=True)
    assert off.value > adaptive_expected_sharpness(RISK, THETA, sigma=sigma).value


def test_fisher_rao():
    rng = torch.Generator().manual_seed(0)
    X, y = (torch.randn(6, *n, generator=rng).double() for n in ((3,), ()))
    risk = LinearRegressionRisk(X, y)
    expected = 2 * (X @ THETA).square().mean()
    assert float(fisher_rao_norm(risk, THETA)) == pytest.approx(float(expected))
    slopes = 2 * (X @ THETA - y) * (X @ THETA)
    result = fisher_rao_norm(risk, THETA, empirical=True)
    assert float(result) == pytest.approx(float(slopes.square().mean()))
    network, theta = _problems.empirical()
    dense = _problems.oracle()
    expected = theta @ dense.gauss_newton @ theta
    assert float(fisher_rao_norm(network, theta)) == pytest.approx(float(expected))
    expected = (dense.gradients @ theta).square().mean()
    result = fisher_rao_norm(network, theta, empirical=True)
    assert float(result) == pytest.approx(float(expected))


def test_fisher_rao_needs_a_likelihood_or_the_true_labels():
    X = torch.ones(3, 2)
    risk = EmpiricalRisk(nn.Linear(2, 1), lambda f, y: f.cosh().log(), X, X[:, :1])
    with pytest.raises(TypeError, match="likelihood"):
        fisher_rao_norm(risk, risk.params())
    assert float(fisher_rao_norm(risk, risk.params(), empirical=True)) >= 0


def relu_network():
    """Return a risk, a θ and a rescaled θ of the same function."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        X, y = torch.randn(20, 4).double(), torch.arange(20) % 3
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    parts = risk.layout.unflatten(theta.clone())
    parts["0.weight"] *= 5.0
    parts["0.bias"] *= 5.0
    parts["2.weight"] /= 5.0
    return risk, theta, risk.layout.flatten(parts)


@pytest.mark.parametrize("name", SHARPNESS_MEASURES)
def test_what_a_rescaled_relu_network_keeps(name):
    risk, theta, rescaled = relu_network()
    torch.testing.assert_close(risk.outputs(theta), risk.outputs(rescaled))
    first, second = (
        float(SHARPNESS_MEASURES[name](risk, t)) for t in (theta, rescaled)
    )
    if name in INVARIANT:
        assert second == pytest.approx(first, rel=1e-8)
    else:
        assert not 0.8 < second / first < 1.25


def test_fisher_rao_at_the_true_labels_is_invariant_too():
    risk, theta, rescaled = relu_network()
    first, second = (
        float(fisher_rao_norm(risk, t, empirical=True)) for t in (theta, rescaled)
    )
    assert second == pytest.approx(first, rel=1e-8)


def test_an_offset_gives_up_the_invariance_of_asam():
    risk, theta, rescaled = relu_network()
    first, second = (float(asam_sharpness(risk, t, eta=0.1)) for t in (theta, rescaled))
    assert abs(second / first - 1) > 0.01


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        (trace_sharpness, {"sigma": 0.0}, "sigma must be .* Got 0.0"),
        (adaptive_expected_sharpness, {"sigma": -1.0}, "sigma must be .* Got -1.0"),
        (adaptive_expected_sharpness, {"n_draws": 1}, "n_draws must be .* Got 1"),
        (sam_sharpness, {"rho": 0.0}, "rho must be .* Got 0.0"),
        (asam_sharpness, {"rho": math.inf}, "rho must be .* Got inf"),
        (asam_sharpness, {"eta": -0.1}, "eta must be .* Got -0.1"),
    ],
)
def test_bad_options(measure, options, message):
    with pytest.raises(ValueError, match=message):
        measure(RISK, THETA, **options)
