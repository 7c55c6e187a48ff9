"""A law without covariance: its characteristic function, quartile and refusals."""

from functools import cache

import pytest
import torch
from scipy import stats

from flatmin.noise import make_noise_law
from flatmin.risk import QuadraticRisk

from ._problems import OneGradient, cast, generator, problem
from ._statistics import assert_mean


@cache
def upper_quartile(alpha):
    return stats.levy_stable.ppf(0.75, alpha, 0)


@pytest.mark.parametrize("name", ["mlp", "quadratic_chains"])
@pytest.mark.parametrize("alpha", [1.2, 1.7, 2.0])
@pytest.mark.parametrize("match", ["trace", "none"])
def test_characteristic_function(match, alpha, name):
    case, rng = problem(name), generator()
    law = make_noise_law("alpha_stable", alpha=alpha, batch_size=3, match=match)
    law.set_params(sigma=0.2, noise_scale=1.5)
    law.check(case.risk)
    state = law.refresh(case.risk, case.theta, rng)
    means = torch.stack([p.mean for p in case.points]).view(case.theta.shape)
    once = OneGradient(case.risk, case.theta)
    draws = [law.noisy_gradient(once, case.theta, state, rng)[1] for _ in range(2000)]
    noise = torch.stack(draws) - means

    # γ from scipy's quartile of the standard law, S(α, 0; 1, 0).
    size = torch.stack([p.sgd_trace / (3 * len(p.mean)) for p in case.points]).sqrt()
    size = torch.full_like(size, 0.2) if match == "none" else size
    size = size.view(case.theta.shape[:-1])
    ratio = stats.norm.ppf(0.75) / upper_quartile(alpha)
    gamma = 1.5 * ratio * size
    for scale in (0.3, 1.0):
        u = torch.randn(case.theta.shape, generator=generator(1), dtype=torch.float64)
        u = scale * u / (gamma.unsqueeze(-1) * u.shape[-1] ** (1 / alpha))
        values = torch.cos((noise * u).sum(-1))
        expected = torch.exp(-((gamma.unsqueeze(-1) * u).abs() ** alpha).sum(-1))
        assert_mean(values.view(2000, -1), expected.flatten())
        assert_mean(torch.sin((noise * u).sum(-1)).view(2000, -1), 0.0)


@pytest.mark.parametrize("alpha", [1.05, 1.2, 1.5, 1.9, 2.0])
def test_interquartile_range_is_the_normals(alpha):
    case = problem("quadratic")
    law = make_noise_law("alpha_stable", alpha=alpha, sigma=2.0, match="none")
    gamma = float(law.refresh(case.risk, case.theta, generator()))
    quartile = gamma * stats.levy_stable.ppf(0.75, alpha, 0)
    assert quartile == pytest.approx(2.0 * stats.norm.ppf(0.75), rel=1e-6)


def test_there_is_no_covariance():
    case, law = problem("mlp"), make_noise_law("alpha_stable")
    state = law.refresh(case.risk, case.theta, generator())
    with pytest.raises(ValueError, match=r"no covariance with alpha=1\.5"):
        law.covariance(case.risk, case.theta, state)
    assert law.trace(case.risk, case.theta, state) == torch.inf
    law.set_params(noise_scale=0)
    state = law.refresh(case.risk, case.theta, generator())
    assert law.trace(case.risk, case.theta, state) == 0
    _, gradient = law.noisy_gradient(case.risk, case.theta, state, generator())
    torch.testing.assert_close(gradient, case.point.mean)


def test_the_scale_of_a_normal_law_by_hand():
    """At α = 2, exp(-γ²u²) is the normal law of variance 2γ²; Σ/m = (4/3)/3 · I here.

    Three examples with slopes (0, 0), (2, 0) and (0, 2) have the centred squares
    8/3 each way: Tr(Σ) = (8/3 + 8/3)/3 = 16/9, and the variance of a coordinate is
    Tr(Σ)/(mD) = 16/9/(3 · 2) = 8/27.
    """
    slopes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    risk = QuadraticRisk(torch.eye(2, dtype=torch.float64), slopes)
    theta = torch.zeros(2, dtype=torch.float64)
    law = make_noise_law("alpha_stable", alpha=2, batch_size=3, noise_scale=1.5)
    gamma = law.refresh(risk, theta, generator())
    assert float(gamma) == pytest.approx(1.5 * (8 / 27 / 2) ** 0.5)
    covariance = law.covariance(risk, theta, gamma).to_dense()
    expected = 1.5**2 * 8 / 27 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(covariance, expected)
    assert float(law.trace(risk, theta, gamma)) == pytest.approx(1.5**2 * 16 / 27)


@pytest.mark.parametrize("alpha", [1.01, 1.5])
def test_heavy_draws_are_finite_in_float32(alpha):
    """Half of them are within the quartile of the normal law, far ones as α says."""
    law = make_noise_law("alpha_stable", alpha=alpha, sigma=1.0, match="none")
    risk, theta = cast("regression_chains", torch.float32)
    theta = theta.repeat(5000, 1)
    state = law.refresh(risk, theta, generator())
    _, gradient = law.noisy_gradient(risk, theta, state, generator())
    assert gradient.isfinite().all()
    noise = (gradient - risk.gradient(theta)).double().abs().flatten()
    far = 100.0
    gamma = stats.norm.ppf(0.75) / stats.levy_stable.ppf(0.75, alpha, 0)
    beyond = 2 * stats.levy_stable.sf(far / gamma, alpha, 0)
    for share, inside in [
        (0.5, noise < stats.norm.ppf(0.75)),
        (1 - beyond, noise < far),
    ]:
        error = (share * (1 - share) / len(noise)) ** 0.5
        assert float(inside.double().mean()) == pytest.approx(share, abs=4 * error)
