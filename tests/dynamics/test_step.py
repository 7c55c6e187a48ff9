"""What a law is told of the step: the iteration and η, if it asks."""

import pytest
import torch

from flatmin._utils.checkpoint_files import read_file, write_file
from flatmin.dynamics import simulate
from flatmin.linalg import ScaledIdentityOperator
from flatmin.noise import METHODS, NoiseLaw, Step, make_noise_law
from flatmin.risk import QuadraticRisk

from ._problems import descent


class Annealed(NoiseLaw):
    """ε of standard deviation σ/(1 + t) in parameter units: σ/(η (1 + t)) in ours."""

    name = "annealed"

    def __init__(self, *, sigma=0.1, refresh_every=1):
        self.sigma = sigma
        self.refresh_every = refresh_every

    def refresh(self, risk, theta, rng, previous=None, *, step):
        return self.sigma / step.lr

    def noisy_gradient(self, risk, theta, state, rng, *, step):
        z = torch.randn(theta.shape, generator=rng, dtype=theta.dtype)
        loss, gradient = risk.value_and_gradient(theta)
        return loss, gradient + state / (1 + step.iteration) * z

    def covariance(self, risk, theta, state):
        return ScaledIdentityOperator(theta.new_tensor(state**2), risk.n_params)


class Heard(Annealed):
    """Writes down what it was told."""

    def refresh(self, *args, step):
        self.__dict__.setdefault("refreshes", []).append(step)
        return super().refresh(*args, step=step)

    def noisy_gradient(self, *args, step):
        self.__dict__.setdefault("draws", []).append(step)
        return super().noisy_gradient(*args, step=step)


def test_only_a_law_that_asks_takes_a_step():
    assert Annealed().takes_step
    assert not make_noise_law("gld_diagonal").takes_step
    assert "gd" in METHODS


def test_a_descent_tells_the_iteration_and_the_rate_of_a_schedule():
    run = descent(Heard(refresh_every=2), lr=0.1)
    rates = [0.1, 0.05, 0.02, 0.01]
    for rate in rates:
        run.optimizer.param_groups[0]["lr"] = rate
        run.refresh()  # what is drawn ahead is the same step
        run.run(1)
    steps = [Step(i, rate) for i, rate in enumerate(rates)]
    assert run.law.draws == steps
    assert run.law.refreshes == steps[::2]


def test_annealed_noise_is_what_the_formula_says():
    run, other = descent(Annealed(), lr=0.05), descent("gd", lr=0.05)
    theta, rng = other.theta.clone(), torch.Generator().manual_seed(2)
    for t in range(4):
        z = torch.randn(theta.shape, generator=rng, dtype=theta.dtype)
        gradient = other.risk.gradient(theta)
        theta = theta - 0.05 * gradient - 0.1 / (1 + t) * z
    run.run(4)
    torch.testing.assert_close(run.theta, theta)


def test_an_annealed_run_goes_on_bit_for_bit(tmp_path):
    whole, first = (
        descent(Annealed(refresh_every=3)),
        descent(Annealed(refresh_every=3)),
    )
    whole.run(11)
    first.run(4)
    write_file(tmp_path / "run", first.state_dict())
    second = descent(Annealed(refresh_every=3))
    second.load_state_dict(read_file(tmp_path / "run"))
    second.run(7)
    assert torch.equal(second.theta, whole.theta)


def test_chains_are_told_too():
    risk = QuadraticRisk(torch.eye(2), torch.eye(2))
    law = Heard()
    simulate(risk, law, torch.zeros(2), lr=0.2, n_iter=3, n_chains=2)
    assert law.draws == law.refreshes == [Step(t, 0.2) for t in range(3)]


def test_two_rates_are_no_eta():
    run = descent(Annealed())
    first = run.optimizer.param_groups[0]
    run.optimizer.param_groups.append({**first, "params": [], "lr": 0.3})
    with pytest.raises(ValueError, match=r"needs one learning rate .*0\.1, 0\.3"):
        run.run(1)
