"""The iteration alone."""

import copy
import math

import pytest
import torch

from flatmin.dynamics import (
    DivergenceError,
    FlatBinding,
    NoisyDescent,
    check_plain_steps,
)
from flatmin.noise import (
    GD,
    METHODS,
    NoiseLaw,
    UndefinedNoiseError,
    make_noise_law,
)
from flatmin.risk import EmpiricalRisk

from ._problems import descent, risk


class Spy(GD):
    """Writes down when its state is renewed and used."""

    def __init__(self, *, refresh_every=1):
        self.refresh_every = refresh_every

    def refresh(self, risk, theta, rng, previous=None):
        number = 1 if previous is None else previous + 1
        self.thetas = [*getattr(self, "thetas", []), theta.clone()]
        return number

    def noisy_gradient(self, risk, theta, state, rng):
        self.states = [*getattr(self, "states", []), state]
        return super().noisy_gradient(risk, theta, state, rng)


@pytest.mark.parametrize("law", METHODS)
def test_a_step_is_the_law_and_the_optimizer(law):
    run = descent(law)
    other, theta = descent(law), run.theta.clone()
    state = other.law.refresh(other.risk, theta, other.rng, None)
    rate = 0.1 / other.law.n_substeps
    for _ in range(other.law.n_substeps):
        _, gradient = other.law.noisy_gradient(other.risk, theta, state, other.rng)
        theta = theta - rate * gradient
    run.run(1)
    torch.testing.assert_close(run.theta, theta, rtol=0, atol=1e-15)
    assert run.optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_blocks_add_up(optimizer):
    whole, parts = (descent("gld_full", optimizer=optimizer) for _ in range(2))
    whole.run(10)
    for block in (3, 0, 1, 6):
        parts.run(block)
    assert torch.equal(whole.theta, parts.theta)
    assert parts.iteration == 10


@pytest.mark.parametrize("law", METHODS)
@pytest.mark.parametrize("every", [1, 3])
def test_measuring_leaves_no_trace(law, every):
    left_alone, measured = descent(law), descent(law)
    left_alone.run(6)
    for _ in range(0, 6, every):
        before = measured.rng.get_state()
        measured.refresh()
        assert torch.equal(measured.rng.get_state(), before)
        measured.law.trace(measured.batch, measured.theta, measured.state)
        measured.run(every)
    assert torch.equal(measured.theta, left_alone.theta)
    assert torch.equal(measured.rng.get_state(), left_alone.rng.get_state())


@pytest.mark.parametrize("law", ["gld_dynamic", "gld_diagonal"])
def test_it_goes_on_from_a_refresh(law):
    whole, resumed = descent(law), descent(law)
    whole.run(2)
    whole.refresh()
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    whole.run(2)
    resumed.run(2)
    assert torch.equal(resumed.theta, whole.theta)


def test_a_step_has_the_gradient_of_where_it_begins():
    """A callback may move θ between the refresh and the step."""
    moved, begun_there = descent(), descent()
    moved.refresh()
    for run in (moved, begun_there):
        run.theta.mul_(2)
        run.run(1)
    assert torch.equal(moved.theta, begun_there.theta)


def test_refreshes_count_from_the_start():
    law = Spy(refresh_every=3)
    run = descent(law)
    run.refresh()
    run.refresh()  # not renewed twice at one point
    for block in (2, 2, 3):
        run.run(block)
        run.refresh()
    assert law.states == [1, 1, 1, 2, 2, 2, 3]
    assert len(law.thetas) == 3


def test_progress_is_called_with_each_step():
    seen = []
    descent().run(4, seen.append)
    assert seen == [1, 1, 1, 1]


def test_the_loss_falls():
    run = descent()
    first = run.risk.value(run.theta)
    run.run(50)
    assert run.risk.value(run.theta) < 0.95 * first


def test_divergence_raises_at_the_step():
    run = descent(lr=1e5, offset=100)
    with pytest.raises(DivergenceError, match=r"inf at iteration 1\d\d with lr=100000"):
        run.run(1000)
    assert run.iteration < 200


@pytest.mark.parametrize("reads_every_loss", [True, False])
def test_stop_returns_to_a_finite_loss(reads_every_loss):
    """On a GPU losses are read once a block, here by telling it so."""
    run = descent(lr=1e5, on_divergence="stop")
    run._reads_every_loss = reads_every_loss
    blocks = 0
    while run.diverged is None:
        begin = run.theta.clone()
        run.run(7)
        blocks += 1
        if run.diverged is None:
            run.accepts(float(run.risk.value(run.theta)))
    assert torch.isfinite(run.risk.value(run.theta))
    steps = run.iteration
    if not reads_every_loss:
        assert torch.equal(run.theta, begin)
        assert steps == 7 * (blocks - 1)
    again = descent(lr=1e5)
    again.run(steps)
    assert torch.equal(again.theta, run.theta)


def test_the_message_does_not_depend_on_when_losses_are_read():
    messages = []
    for reads_every_loss in (True, False):
        run = descent(lr=1e5)
        run._reads_every_loss = reads_every_loss
        with pytest.raises(DivergenceError) as error:
            run.run(1000)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


class Blind(GD):
    """Sees a finite loss wherever it is, as a lucky minibatch does."""

    def noisy_gradient(self, risk, theta, state, rng):
        _, gradient = super().noisy_gradient(risk, theta, state, rng)
        return torch.ones(()), gradient


def test_stop_looks_at_the_full_risk():
    run = descent(Blind(), lr=1e5, on_divergence="stop")
    begin = run.theta.clone()
    run.run(200)
    loss = float(run.risk.value(run.theta))
    assert not run.accepts(loss)
    assert torch.equal(run.theta, begin)
    assert run.iteration == 0


def test_nowhere_to_return_to():
    for on_divergence in ("raise", "stop"):
        run = descent(on_divergence=on_divergence)
        run.binding.assign(torch.full_like(run.theta, 1e300))
        with pytest.raises(DivergenceError, match="inf at iteration 0, before the fir"):
            run.run(1)


class Fragile(GD):
    """Fails in refresh where θ is large, as eigensolvers do."""

    limit = 1e100

    def refresh(self, risk, theta, rng, previous=None):
        if not theta.abs().max() < self.limit:
            raise torch.linalg.LinAlgError("no convergence")
        return None


def test_a_failing_refresh_is_a_divergence_where_the_loss_is_not_finite():
    run = descent(Fragile(), lr=1e200, on_divergence="stop")
    run.run(3)
    assert run.diverged.startswith("The loss became")
    assert torch.isfinite(run.risk.value(run.theta))


def test_a_failing_refresh_at_a_finite_loss_is_an_error():
    law = Fragile()
    law.limit = 0.0
    with pytest.raises(torch.linalg.LinAlgError, match="no convergence"):
        descent(law).run(1)


def test_a_law_of_ones_own():
    class Own(NoiseLaw):
        name = "own"

        def noisy_gradient(self, risk, theta, state, rng):
            loss, gradient = risk.value_and_gradient(theta)
            return loss, gradient + torch.randn(theta.shape, generator=rng)

        def covariance(self, risk, theta, state):
            raise NotImplementedError

    run = descent(Own())
    run.run(5)
    assert run.iteration == 5
    own, rng = risk(), torch.Generator().manual_seed(2)
    theta = own.params()
    for _ in range(5):
        noise = torch.randn(theta.shape, generator=rng)
        theta = theta - 0.1 * (own.gradient(theta) + noise)
    torch.testing.assert_close(run.theta, theta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("law", METHODS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_it_goes_on_from_its_state(law, optimizer):
    if law == "svag" and optimizer is torch.optim.Adam:
        with pytest.raises(ValueError, match="SVAG takes 4 steps at a part of η"):
            descent(law, optimizer=optimizer)
        return
    whole, begun, resumed = (descent(law, optimizer=optimizer) for _ in range(3))
    whole.run(17)
    begun.run(13)
    resumed.run(5)  # is forgotten
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    assert resumed.iteration == 13
    resumed.run(4)
    assert torch.equal(resumed.theta, whole.theta)
    assert torch.equal(resumed.rng.get_state(), whole.rng.get_state())


def test_it_returns_to_a_finite_loss_from_before():
    begun, resumed = (descent(on_divergence="stop") for _ in range(2))
    begun.run(2)
    before = begun.theta.clone()
    begun.run(1)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    resumed.theta.fill_(1e200)
    resumed.run(1)
    assert resumed.diverged is not None
    assert resumed.iteration == 2
    assert torch.equal(resumed.theta, before)


def _slide(match_every, on_divergence):
    """A descent whose loss, Σ sin(t) - 2t + bᵢt, is convex until t = 0."""

    def loss(outputs, targets):
        t = outputs[:, 0]
        return t.sin() - 2 * t + targets[:, 0] * t

    module = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(module.weight, -1.0)
    slopes = torch.tensor([[1e-3], [-1e-3]]).double()
    example = EmpiricalRisk(module, loss, torch.ones(2, 1).double(), slopes)
    binding = FlatBinding(module)
    return NoisyDescent(
        example,
        make_noise_law("gld_dynamic", match="curvature", match_every=match_every),
        binding,
        torch.optim.SGD(binding.params, lr=0.1),
        rng=torch.Generator().manual_seed(0),
        on_divergence=on_divergence,
        offset=100,
    )


def test_noise_without_a_size_ends_a_run_where_it_is():
    run = _slide(2, "stop")
    run.run(50)
    # Without noise: sin'' < 0 from the iterate after t = 0.
    t, expected = -1.0, 0
    while t <= 0 or expected % 2:
        t, expected = t - 0.1 * (math.cos(t) - 2), expected + 1
    assert run.iteration == expected
    assert run.diverged.startswith(f"No noise at iteration {100 + expected}: match=")
    assert "both must be positive. Got -" in run.diverged
    assert not run.has_noise
    assert float(run.theta) == pytest.approx(t, abs=1e-2)
    before = run.theta.clone()
    run.law.trace(run.batch, run.theta, run.state)
    assert torch.equal(run.theta, before)


def test_noise_without_a_size_is_raised():
    with pytest.raises(UndefinedNoiseError, match="both must be positive"):
        _slide(2, "raise").run(50)


def test_noise_that_never_had_a_size_is_raised():
    run = _slide(1, "stop")
    with torch.no_grad():
        run.binding.assign(torch.ones(1).double())
    with pytest.raises(UndefinedNoiseError, match="both must be positive"):
        run.refresh()


def test_small_steps_see_the_noise_of_one_large_one():
    """Over an iteration the noise of svag has SGD's covariance, η²Σ/m, at any l."""
    variances = []
    for law in (make_noise_law("svag", n_substeps=n, batch_size=2) for n in (1, 9)):
        run = descent(law, lr=1e-4)
        start, ends = run.theta.clone(), []
        for _ in range(300):
            run.binding.assign(start)
            run.follow()
            run.run(1)
            ends.append(run.theta.clone())
        variances.append(torch.stack(ends).var(0).sum() / 1e-8)
    rows = torch.cat(list(run.risk.per_example_gradients(start)))
    expected = rows.var(0, correction=0).sum() / 2
    torch.testing.assert_close(
        torch.stack(variances), expected.expand(2), rtol=0.25, atol=0
    )


def test_a_loss_that_is_lost_within_an_iteration_is_seen():
    run = descent(make_noise_law("svag"), lr=1e200, on_divergence="stop")
    start = run.theta.clone()
    run.run(3)
    assert run.diverged
    assert run.iteration == 0
    assert torch.equal(run.theta, start)
    assert run.optimizer.param_groups[0]["lr"] == 1e200


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"momentum": 0.9}, "use optimizer='sgd' without momentum"),
        ({"batched": True}, "Leave gradient_batch_size at None"),
    ],
)
def test_small_steps_need_plain_ones(params, sentence):
    batched = params.pop("batched", False)
    with pytest.raises(ValueError, match=sentence):
        check_plain_steps(make_noise_law("svag"), torch.optim.SGD, params, batched)
    check_plain_steps(make_noise_law("sgd"), torch.optim.Adam, params, batched)
