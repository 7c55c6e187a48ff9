"""What one step adds the next one takes away."""

import pytest
import torch

from flatmin.dynamics import simulate
from flatmin.noise import Step, UndefinedNoiseError, make_noise_law
from flatmin.risk import QuadraticRisk

from ._problems import generator, problem


@pytest.mark.parametrize("refresh_every", [1, 3])
def test_the_noise_does_not_add_up_whatever_the_schedule(refresh_every):
    case, rng, sigma = problem("mlp"), generator(), 0.3
    law = make_noise_law("anti_pgd", match="none", sigma=sigma)
    assert law.takes_step
    # The first draws: z₀, then one an iteration.
    again = generator()
    z = [
        torch.randn(case.theta.shape, generator=again, dtype=torch.float64)
        for _ in range(6)
    ]
    state, moved = None, torch.zeros_like(case.theta)
    for t, rate in enumerate([0.1, 0.3, 0.02, 0.5, 0.1]):
        told = {"step": Step(t, rate)}
        if t % refresh_every == 0:
            state = law.refresh(case.risk, case.theta, rng, state, **told)
        _, gradient = law.noisy_gradient(case.risk, case.theta, state, rng, **told)
        variance = 2 * (sigma / rate) ** 2 * len(case.theta)
        assert float(law.trace(case.risk, case.theta, state)) == pytest.approx(variance)
        moved -= rate * (gradient - case.point.mean)
        torch.testing.assert_close(moved, sigma * (z[0] - z[t + 1]))


def test_successive_draws_have_the_correlation_of_one_half():
    case, rng = problem("mlp"), generator()
    law = make_noise_law("anti_pgd", batch_size=3)
    state = law.refresh(case.risk, case.theta, rng)
    draws = torch.stack(
        [law.noisy_gradient(case.risk, case.theta, state, rng)[1] for _ in range(2000)]
    )
    noise = draws - case.point.mean
    variance = case.point.sgd_trace / 3
    lagged = [
        float((noise[: len(noise) - k] * noise[k:]).sum(-1).mean()) for k in range(3)
    ]
    assert lagged == pytest.approx(
        [float(variance), -float(variance) / 2, 0.0], abs=0.02 * float(variance)
    )


def test_a_random_walk_does_not_spread():
    # Without a gradient θ is θ₀ + ξ₀ - ξₙ: of variance 2σ² after any number of steps.
    risk = QuadraticRisk(torch.zeros(2, 2), torch.zeros(4, 2))
    law = make_noise_law("anti_pgd", match="none", sigma=0.1)
    for n_iter in (1, 50):
        run = simulate(risk, law, torch.zeros(2), lr=0.3, n_iter=n_iter, n_chains=4000)
        assert float(run["anti_pgd"].theta.var()) == pytest.approx(0.02, rel=0.06)


def test_parameter_units_need_eta():
    case = problem("quadratic")
    law = make_noise_law("anti_pgd", match="none")
    with pytest.raises(ValueError, match=r"needs η. Got no step; call refresh"):
        law.refresh(case.risk, case.theta, generator())


def test_a_rate_of_zero_gives_no_noise_a_size():
    case = problem("quadratic")
    law = make_noise_law("anti_pgd", match="none")
    with pytest.raises(UndefinedNoiseError, match=r"η = 0 moves.*stays above 0"):
        law.refresh(case.risk, case.theta, generator(), step=Step(0, 0.0))
