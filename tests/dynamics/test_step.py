"""What a law is told of the step: the iteration and η, if it asks."""

import pytest
import torch

from flatmin._runs.checkpoint_files import read_file, write_file
from flatmin._runs.storable import as_storable
from flatmin.dynamics import check_plain_steps, simulate
from flatmin.linalg import ScaledIdentityOperator
from flatmin.noise import METHODS, NoiseLaw, Step, make_noise_law
from flatmin.risk import QuadraticRisk

from ._problems import descent, network


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


def _steps_of_anti_pgd(disturb):
    """Return the noise of five steps in parameters, and what z they should be made of.

    ``disturb(run, t)`` does what a callback may do between the refresh for a row of
    the history and the step.
    """
    run = descent(make_noise_law("anti_pgd", match="none", sigma=0.5), lr=0.1)
    rng = torch.Generator().manual_seed(2)
    z = [torch.randn(26, generator=rng, dtype=torch.float64) for _ in range(6)]
    noise = []
    for t in range(5):
        run.refresh()
        disturb(run, t)
        before, rate = run.theta.clone(), run.optimizer.param_groups[0]["lr"]
        run.run(1)
        noise.append(run.theta - before + rate * run.risk.gradient(before))
    return noise, [0.5 * (z[t] - z[t + 1]) for t in range(5)]


def _schedule(run, t):
    run.optimizer.param_groups[0]["lr"] = [0.1, 0.01, 0.2, 0.2, 0.05][t]


def _move(run, t):
    if t in (0, 2):
        with torch.no_grad():
            next(iter(run.binding.module.parameters())).add_(0.1)
    run.follow()


def _resume(run, t):
    # A schedule between the last checkpoint of a run and its next step.
    state = run.state_dict()
    run.load_state_dict(as_storable(state, "the run"))
    _schedule(run, t)


@pytest.mark.parametrize("disturb", [_schedule, _move, _resume])
def test_what_was_drawn_ahead_of_another_step_is_taken_back(disturb):
    # Noise in parameters of the η of the step, and no draw left out or doubled.
    for found, expected in zip(*_steps_of_anti_pgd(disturb), strict=True):
        torch.testing.assert_close(found, expected)


def test_no_batch_of_an_epoch_is_lost_where_a_callback_moves_the_parameters():
    law = make_noise_law("sgd", batch_size=4, sampling="epoch")
    run, seen = descent(law, lr=0.1), []
    for _ in range(3):
        run.refresh()
        _move(run, 0)
        run.run(1)
        seen.append(run.state.order[run.state.position - 4 : run.state.position])
    assert torch.cat(seen).sort().values.tolist() == list(range(12))


class Remembers(Annealed):
    """Somebody's law whose state no checkpoint can hold."""

    def refresh(self, risk, theta, rng, previous=None, *, step):
        return step

    def noisy_gradient(self, risk, theta, state, rng, *, step):
        loss, gradient = risk.value_and_gradient(theta)
        return loss, gradient + state.lr

    def covariance(self, risk, theta, state):
        raise AssertionError


def test_a_law_without_plain_states_follows_a_schedule_as_well():
    run = descent(Remembers(), lr=0.1)
    for rate in (0.3, 0.2):
        run.refresh()
        run.optimizer.param_groups[0]["lr"] = rate
        before = run.theta.clone()
        run.run(1)
        expected = before - rate * (run.risk.gradient(before) + rate)
        torch.testing.assert_close(run.theta, expected)


@pytest.mark.parametrize("inside", [False, True])
def test_noise_in_parameter_units_needs_plain_steps(inside):
    law = make_noise_law("anti_pgd", match="none")
    law = make_noise_law("projected", law=law) if inside else law
    name = type(law).__name__
    message = f"noise of {name} is in parameter units.*Got Adam.* in gradient units"
    with pytest.raises(ValueError, match=message):
        descent(law, optimizer=torch.optim.Adam)
    descent(make_noise_law("anti_pgd"), optimizer=torch.optim.Adam)


def test_the_momentum_of_a_group_is_one_too():
    module = network()
    first, *others = module.parameters()
    groups = [{"params": [first], "momentum": 0.9}, {"params": others}]
    law = make_noise_law("svag")
    with pytest.raises(ValueError, match="use optimizer='sgd' without momentum"):
        descent(law, optimizer=lambda _, lr: torch.optim.SGD(groups, lr=lr))
    params = {"param_groups": [("0.*", {"momentum": 0.9})]}
    with pytest.raises(ValueError, match="without momentum"):
        check_plain_steps(law, torch.optim.SGD, params, False)
