"""``gld_const`` at a temperature: the unadjusted Langevin algorithm."""

import pytest
import torch

from flatmin.dynamics import simulate
from flatmin.noise import (
    GLDConst,
    Projected,
    Step,
    UndefinedNoiseError,
    make_noise_law,
)
from flatmin.risk import LinearRegressionRisk

from ._problems import generator, problem


def regression(n=30, seed=0):
    """Return a linear regression in three unknowns, and its H."""
    rng = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    X = X @ torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.8, 0.2], [0.0, 0.0, 0.6]]).double()
    y = torch.randn(n, generator=rng, dtype=torch.float64)
    return LinearRegressionRisk(X, y), 2 / n * X.T @ X


def stationary(H, lr, temperature, n):
    """Return (T/N) H⁻¹ (I - ηH/2)⁻¹, the covariance of the discrete chain."""
    eye = torch.eye(len(H), dtype=H.dtype)
    return temperature / n * torch.linalg.inv(H @ (eye - lr * H / 2))


def z_scores(samples, mean, covariance):
    """Return how many standard errors mean and covariance of samples are off."""
    m = len(samples)
    centred = samples - mean
    of_mean = centred.mean(0) / (covariance.diag() / m).sqrt()
    found = centred.T @ centred / m
    variances = covariance.diag()
    error = ((variances[:, None] * variances + covariance**2) / m).sqrt()
    return torch.cat([of_mean, ((found - covariance) / error).triu().flatten()])


@pytest.mark.parametrize(("share", "temperature"), [(0.5, 1.0), (1.8, 0.1)])
def test_many_chains_have_the_mean_and_covariance_of_the_discrete_chain(
    share, temperature
):
    """η is a share of 1/λ₁, up to 0.9 of the largest that is stable."""
    risk, H = regression()
    lr, n_chains = share / float(torch.linalg.eigvalsh(H)[-1]), 10_000
    law = GLDConst(temperature=temperature)
    slowest = lr * float(torch.linalg.eigvalsh(H)[0])
    run = simulate(
        risk, law, torch.zeros(3), lr=lr, n_iter=int(8 / slowest), n_chains=n_chains
    )["gld_const"]
    minimum = torch.linalg.lstsq(risk.X, risk.y[:, None]).solution[:, 0]
    expected = stationary(H, lr, temperature, risk.n_examples)
    assert float(z_scores(run.theta, minimum, expected).abs().max()) < 4
    # The test sees the bias: the posterior's own covariance does not pass it.
    posterior = temperature / risk.n_examples * torch.linalg.inv(H)
    assert float(z_scores(run.theta, minimum, posterior).abs().max()) > 8


def test_the_variance_is_that_of_the_formula():
    case = problem("mlp")
    law = make_noise_law("gld_const", temperature=0.3, noise_scale=2.0)
    law.check(case.risk)
    assert law.takes_step
    assert law.in_parameter_units
    assert law.needs_all_examples
    for t, lr in enumerate([0.1, 0.02]):
        told = {"step": Step(t, lr)}
        state = law.refresh(case.risk, case.theta, generator(), **told)
        variance = 4 * 2 * 0.3 / (case.risk.n_examples * lr)
        C = law.covariance(case.risk, case.theta, state).to_dense()
        eye = torch.eye(len(C), dtype=C.dtype)
        torch.testing.assert_close(C, variance * eye, rtol=1e-12, atol=0)


def test_a_rate_that_has_changed_since_the_refresh():
    """The draw is for the step that it is given, also inside another law."""
    case = problem("mlp")
    law = GLDConst(temperature=0.3)
    both = (law, Projected(law, n_components=3, refresh_every=10))
    for law in both:
        state = law.refresh(case.risk, case.theta, generator(), step=Step(0, 0.1))
        before = float(law.trace(case.risk, case.theta, state))
        args = (case.risk, case.theta, state)
        slow = law.noisy_gradient(*args, generator(), step=Step(1, 0.1))[1]
        fast = law.noisy_gradient(*args, generator(), step=Step(1, 0.4))[1]
        mean = case.point.mean
        torch.testing.assert_close((slow - mean) / 2, fast - mean)
        after = float(law.trace(case.risk, case.theta, state))
        assert after == pytest.approx(before / 4)


def test_sigma_is_as_before():
    case = problem("mlp")
    for law, variance in ((GLDConst(), 1e-6), (GLDConst(sigma=0.5), 0.25)):
        assert not law.takes_step
        assert not law.in_parameter_units
        state = law.refresh(case.risk, case.theta, generator())
        assert float(state.scale) == pytest.approx(variance)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sigma": 1e-3}, "temperature and sigma of gld_const both"),
        ({"sigma": 0.0}, "Got temperature=1.0 and sigma=0.0"),
        ({"match": "trace"}, "match='trace'"),
        ({"temperature": -1.0}, "temperature of gld_const must be"),
        ({"temperature": float("nan")}, "temperature of gld_const must be"),
        ({"temperature": "hot"}, "temperature of gld_const must be"),
    ],
)
def test_settings_that_cannot_be(settings, match):
    law = GLDConst(**{"temperature": 1.0, **settings})
    with pytest.raises((ValueError, TypeError), match=match):
        law.check(problem("mlp").risk)


def test_no_step_and_a_step_of_nothing():
    case, law = problem("mlp"), GLDConst(temperature=1.0)
    with pytest.raises(ValueError, match=r"needs η.*Got no step"):
        law.refresh(case.risk, case.theta, generator())
    with pytest.raises(UndefinedNoiseError, match="stays above 0"):
        law.refresh(case.risk, case.theta, generator(), step=Step(0, 0.0))
