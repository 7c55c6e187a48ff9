"""Sizes and spectrum of the gradient noise, against dense matrices."""

import pytest
import torch

from flatmin.measures import (
    curvature_noise_scale,
    gradient_noise,
    gradient_signal_to_noise,
    noise_spectrum,
)
from flatmin.risk import QuadraticRisk

from ..curvature import _problems as networks
from . import _problems

close = torch.testing.assert_close


@pytest.fixture(params=["regression", "network"])
def problem(request):
    """A risk, a θ, and H, Σ and g₀ there."""
    if request.param == "regression":
        risk, theta, H, S = _problems.regression()
        return risk, theta, H, S, risk.gradient(theta)
    dense = networks.oracle()
    return (
        *networks.empirical(),
        *(dense.hessian, dense.covariance, dense.gradient),
    )


def test_spectrum(problem):
    risk, theta, _, S, _ = problem
    result = noise_spectrum(risk, theta, 5, tol=1e-8)
    values = torch.linalg.eigvalsh(S).flip(0)
    close(result.eigenvalues, values[:5], rtol=1e-6, atol=1e-12)
    close(result.trace.value, S.trace())
    close(result.norm.value, S.norm())
    assert (result.trace.stderr, result.norm.stderr) == (0, 0)
    rank = S.trace() ** 2 / S.norm() ** 2
    assert float(result) == pytest.approx(float(rank), rel=1e-6)
    close(result.share, values[:5].sum() / values.sum(), rtol=1e-6, atol=0)


def test_the_effective_rank_of_equal_eigenvalues_is_their_number():
    slopes = torch.eye(7, 30).double()
    risk = QuadraticRisk(torch.eye(30).double(), torch.cat([slopes, -slopes]))
    result = noise_spectrum(risk, torch.zeros(30).double(), 3)
    assert float(result) == pytest.approx(7)


def test_an_estimated_rank_has_an_honest_error():
    risk, theta, _, S = _problems.regression()
    expected, scores = S.trace() ** 2 / S.norm() ** 2, []
    for seed in range(20):
        rank = noise_spectrum(
            risk, theta, 3, max_matvecs=25, rtol=1e-3, rng=seed
        ).effective_rank
        assert rank.stderr > 0
        scores.append(float((rank.value - expected) / rank.stderr))
    assert sum(abs(score) < 3 for score in scores) >= 17
    assert max(map(abs, scores)) > 0.2


def test_a_layers_spectrum():
    risk, theta = networks.empirical()
    at = risk.layout.indices("2")
    block = networks.oracle().covariance[at][:, at]
    result = noise_spectrum(risk, theta, 3, select="2")
    assert result.n_params == len(at)
    close(result.trace.value, block.trace())
    close(result.norm.value, block.norm())


def test_noise_beside_the_gradient(problem):
    risk, theta, _, S, g = problem
    noise = gradient_noise(risk, theta)
    close(noise.gradient_norm, g.norm())
    close(noise.trace, S.trace())
    close(noise.noise_norm(20), (S.trace() / 20).sqrt())
    close(noise.diffusion_norm(20, 0.07), (0.07 * S.trace() / 20).sqrt())
    assert float(noise) == pytest.approx(float(S.trace() / (g @ g)))


def test_at_the_noise_scale_noise_and_gradient_are_as_large():
    risk, theta, _, _ = _problems.regression()
    noise = gradient_noise(risk, theta)
    close(noise.noise_norm(float(noise)), noise.gradient_norm)


def test_the_noise_norm_is_that_of_minibatches():
    risk, theta, _, _ = _problems.regression()
    rng = torch.Generator().manual_seed(0)
    batches = torch.randint(_problems.N, (4000, 5), generator=rng)
    drawn = risk.batch_gradients(theta, batches) - risk.gradient(theta)
    squares = drawn.square().sum(1)
    expected = gradient_noise(risk, theta).noise_norm(5).square()
    assert abs(squares.mean() - expected) < 4 * squares.std() / 4000**0.5


def test_curvature_noise_scale(problem):
    risk, theta, H, S, g = problem
    result = curvature_noise_scale(risk, theta)
    close(result.value, (H @ S).trace() / (g @ H @ g))
    assert result.stderr == 0


def test_an_estimated_scale_has_an_error():
    risk, theta, H, S = _problems.regression()
    g = risk.gradient(theta)
    result = curvature_noise_scale(risk, theta, max_matvecs=30, rtol=0.01)
    error = abs(result.value - (H @ S).trace() / (g @ H @ g))
    assert 0 < error < 4 * result.stderr


def test_signal_to_noise(problem):
    risk, theta, _, S, g = problem
    found = gradient_signal_to_noise(risk, theta)
    close(found.value, (g.square() / S.diagonal()).mean())
    assert (int(found.n_used), found.left_out) == (len(g), {})


def test_coordinates_without_noise_are_left_out():
    slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    risk = QuadraticRisk(torch.eye(2), slopes)
    found = gradient_signal_to_noise(risk, torch.tensor([2.0, 3.0]))
    assert (float(found), int(found.n_used), found.left_out) == (4, 1, {"θ": 1})
    silent = QuadraticRisk(torch.eye(2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="Got none of 2"):
        gradient_signal_to_noise(silent, torch.ones(2))


def test_coordinates_with_rounding_alone_are_left_out():
    risk, theta, bias = _problems.attention()
    variances = risk.gradient_variances(theta)
    assert 0 < float(variances[bias].max()) < 1e-12
    ratios = risk.gradient(theta).double().square() / variances
    ratios[bias] = torch.nan
    found = gradient_signal_to_noise(risk, theta)
    close(found.value, ratios.nanmean(), rtol=1e-5, atol=0)
    assert found.left_out == {"0.self_attn.in_proj_bias": len(bias)}


def test_chains():
    risk, theta, _, _ = _problems.regression()
    at = torch.stack([theta, 2 * theta])
    noise = gradient_noise(risk, at)
    close(noise.noise_norm(3)[1], gradient_noise(risk, at[1]).noise_norm(3))
    close(
        gradient_signal_to_noise(risk, at).value[1],
        gradient_signal_to_noise(risk, at[1]).value,
    )
    close(
        curvature_noise_scale(risk, at).value[1],
        curvature_noise_scale(risk, at[1]).value,
    )
