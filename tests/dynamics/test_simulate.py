"""Simulated chains against closed forms of a quadratic, and against a loop by hand."""

import math
import warnings
import weakref

import pytest
import torch
from scipy.stats import norm

from flatmin.dynamics import DivergenceError, Proportion, Simulation, simulate
from flatmin.noise import GD, METHODS, GLDConst, make_noise_law
from flatmin.risk import FunctionRisk, QuadraticRisk, TwoBasinsRisk

from . import _problems

close = torch.testing.assert_close


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def quadratic():
    A = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    slopes = torch.randn(8, 2, generator=generator(3), dtype=torch.float64)
    return QuadraticRisk(A, slopes)


@pytest.fixture
def basins():
    return TwoBasinsRisk.from_paper("matched")


START = torch.tensor([1.0, -1.0], dtype=torch.float64)


def settings(name):
    known = METHODS[name]._get_param_names()
    return {"batch_size": 2} if "batch_size" in known else {}


@pytest.mark.parametrize("name", METHODS)
def test_every_law_runs_and_is_a_loop_by_hand(basins, name):
    law = make_noise_law(name, **settings(name))
    if name == "label_noise":
        with pytest.raises(ValueError, match="a TwoBasinsRisk, which has none"):
            simulate(basins, law, basins.sharp_minimum, lr=0.005, n_iter=1)
        return
    run = simulate(
        basins, law, basins.sharp_minimum, lr=0.005, n_iter=12, n_chains=4, rng=7
    )[name]
    theta, rng, state = basins.sharp_minimum.expand(4, 2), generator(7), None
    for t in range(12):
        if t % law.refresh_every == 0:
            state = law.refresh(basins, theta, rng, state)
        for _ in range(law.n_substeps):
            gradient = law.noisy_gradient(basins, theta, state, rng)[1]
            theta = theta - 0.005 / law.n_substeps * gradient
    assert torch.equal(run.theta, theta)
    assert run.law is law
    assert run.success is run.exit_times is run.censored is run.trajectory is None


@pytest.mark.parametrize("name", ["gld_dynamic", "gld_diagonal"])
def test_a_refresh_and_its_step_share_a_sweep(basins, name, monkeypatch):
    """A step takes the gradients of all examples once, and g₀ by itself never."""
    calls = []
    for method in ("example_gradients", "value_and_gradient"):
        original = getattr(basins, method)
        monkeypatch.setattr(
            basins,
            method,
            lambda theta, original=original: (calls.append(1), original(theta))[1],
        )
    law = make_noise_law(name, batch_size=2, refresh_every=1)
    simulate(basins, law, basins.sharp_minimum, lr=0.005, n_iter=6, n_chains=3)
    assert len(calls) == 6


def test_stationary_covariance_of_a_quadratic(quadratic):
    """θ ← (1 - ηa) θ - ηε has variance η²σ²/(1 - (1 - ηa)²); 20,000 chains."""
    law, lr, M = GLDConst(sigma=0.5), 0.3, 20_000
    run = simulate(quadratic, law, torch.zeros(2), lr=lr, n_iter=60, n_chains=M)[
        "gld_const"
    ]
    decay = 1 - lr * torch.tensor([2.0, 1.0], dtype=torch.float64)
    expected = (lr * 0.5) ** 2 / (1 - decay**2)
    ratio = run.theta.var(0, correction=0) / expected
    close(ratio, torch.ones(2).double(), atol=4.5 * (2 / M) ** 0.5, rtol=0)


def test_first_exits_and_successes_by_hand(quadratic):
    """A scripted law: the chains visit the target at 2, at 0, never, and at the end."""
    moves = torch.tensor([[0, 1, -1], [-1, 0, 1], [0, 0, 0], [0, 0, 1]])

    class Scripted(GD):
        def refresh(self, risk, theta, rng, previous=None):
            return 0 if previous is None else previous + 1

        def noisy_gradient(self, risk, theta, state, rng):
            step = moves[:, state, None].expand(-1, 2)
            return risk.value(theta), -step.to(theta)

    start = torch.tensor([0.0, 1.0, 0.0, 0.0]).double()[:, None].expand(-1, 2)
    (run,) = simulate(
        quadratic,
        {"scripted": Scripted()},
        start,
        lr=1.0,
        n_iter=3,
        n_chains=4,
        reached=lambda theta: theta[:, 0] > 0.5,
        record_every=2,
    ).values()
    assert run.exit_times.tolist() == [2, 0, 3, 3]
    assert run.censored.tolist() == [False, False, True, False]
    assert run.success.tolist() == [False, True, False, True]
    assert run.iterations.tolist() == [0, 2]
    assert run.trajectory[..., 0].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert run.success_rate().count == 2
    assert run.exit_rate().count == 3
    exit_time = run.mean_exit_time()
    assert float(exit_time) == pytest.approx(8 / 3)
    assert float(exit_time.stderr) == pytest.approx(8 / 3 / 3**0.5)


def test_mean_exit_time_is_that_of_a_constant_rate(quadratic):
    """Steps from a fixed point: each is in the target with one probability p."""

    class Redraw(GLDConst):
        def noisy_gradient(self, risk, theta, state, rng):
            return risk.value(theta), theta - state.sample(rng)

    reached = simulate(
        quadratic,
        {"redraw": Redraw(sigma=1.0)},
        torch.zeros(2),
        lr=1.0,
        n_iter=30,
        n_chains=5000,
        reached=lambda theta: theta[:, 0] > 1.5,
    )["redraw"]
    p = norm.sf(1.5)
    exit_time = reached.mean_exit_time()
    error = float(exit_time.stderr)
    assert float(exit_time) == pytest.approx(1 / p, abs=4.5 * error)
    assert 0.5 < reached.exit_rate().value < 0.95  # many are censored
    expected = 1 - (1 - p) ** 30
    assert reached.exit_rate().value == pytest.approx(expected, abs=4.5 / 5000**0.5 / 2)


def test_a_chain_that_diverges_is_outside_no_longer():
    """θ⁴/4 with steps of 1: what is not in the target soon overflows."""
    risk = FunctionRisk(lambda t: t[..., 0] ** 4 / 4, torch.zeros(1).double())

    def reached(theta):
        return (theta[:, 0] > 1.2) & (theta[:, 0] < 1.5)

    times = []
    for n_iter in (200, 400):
        run = simulate(
            *(risk, make_noise_law("gld_const", sigma=1.5), torch.zeros(1).double()),
            lr=1.0,
            n_iter=n_iter,
            n_chains=200,
            reached=reached,
            record_every=1,
        )["gld_const"]
        finite = run.trajectory[:, :, 0].isfinite()
        assert not bool(finite[-1].any())
        inside = reached(run.trajectory.flatten(0, 1)).view(finite.shape) & finite
        last = finite.sum(0) - 1
        first = torch.where(inside.any(0), inside.double().argmax(0), last)
        assert run.exit_times.tolist() == first.tolist()
        assert run.censored.tolist() == (~inside.any(0)).tolist()
        times.append(float(run.mean_exit_time()))
        assert times[-1] == pytest.approx(float(first.sum() / inside.any(0).sum()))
    assert times[0] == times[1]


def test_matched_basins_order_as_the_paper_says(basins):
    """Success of the laws of SGD's trace: what follows the curvature escapes more."""
    laws = {
        "gd": GD(),
        "dynamic": make_noise_law("gld_dynamic", batch_size=1),
        "leading": make_noise_law("gld_leading", batch_size=1, source="examples"),
    }
    runs = simulate(
        basins,
        laws,
        basins.sharp_minimum,
        lr=0.006,
        n_iter=600,
        n_chains=200,
        reached=basins.in_flat_basin,
    )
    rates = {name: run.success_rate() for name, run in runs.items()}
    assert rates["gd"].count == 0
    assert rates["dynamic"].high < rates["leading"].low


def test_unstable_learning_rates_are_said_to_be(basins):
    with pytest.warns(UserWarning, match=r"η λ_max = 20\.5 > 2.*stable one is below 0"):
        simulate(basins, "gd", basins.sharp_minimum, lr=0.1, n_iter=1, n_chains=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(basins, "gd", basins.sharp_minimum, lr=0.0097, n_iter=1, n_chains=2)


def test_iterates_are_not_kept(quadratic):
    seen = []

    class Watched(GD):
        def noisy_gradient(self, risk, theta, state, rng):
            seen.append(weakref.ref(theta))
            assert sum(ref() is not None for ref in seen) <= 3
            return super().noisy_gradient(risk, theta, state, rng)

    simulate(quadratic, {"watched": Watched()}, START, lr=0.1, n_iter=20)
    assert len(seen) == 20


def test_a_seed_makes_methods_independent_of_each_other(basins):
    def run(methods, rng):
        return simulate(
            basins, methods, basins.sharp_minimum, lr=0.005, n_iter=5, rng=rng
        )

    alone, both = run("sgd", 3), run(["gd", "sgd"], 3)
    assert torch.equal(alone["sgd"].theta, both["sgd"].theta)
    assert not torch.equal(run("sgd", 4)["sgd"].theta, alone["sgd"].theta)
    assert not torch.equal(run("sgd", None)["sgd"].theta, run("sgd", None)["sgd"].theta)
    rng = generator(3)
    assert torch.equal(run("sgd", rng)["sgd"].theta, alone["sgd"].theta)
    assert not torch.equal(run("sgd", rng)["sgd"].theta, alone["sgd"].theta)


@pytest.mark.filterwarnings("ignore:η λ_max:UserWarning")
def test_chains_that_diverge_are_not_successes():
    """From D = 3 on an eigensolver refuses numbers that are not finite."""
    risk = QuadraticRisk(torch.eye(3), torch.zeros(4, 3))
    start = torch.ones(3, 3)
    start[1] = 0

    def run(law):
        return simulate(
            risk,
            law,
            start,
            lr=1e20,
            n_iter=5,
            n_chains=3,
            reached=lambda theta: theta[:, 0] < math.inf,
        )

    assert run("gd")["gd"].success.tolist() == [False, True, False]
    # The first step that leaves the numbers goes to -∞.
    below = simulate(
        risk,
        "gd",
        10 * start,
        lr=3e38,
        n_iter=1,
        n_chains=3,
        reached=lambda theta: (theta < 0).all(-1),
    )
    assert below["gd"].theta[0].isneginf().all()
    assert not below["gd"].exit_rate().count
    law = make_noise_law("gld_leading", source="examples", noise_scale=0)
    with pytest.raises(DivergenceError, match=r"2 chains of gld_leading are not fin"):
        run(law)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, r"lr must be a finite number above 0. Got 0.0"),
        ({"lr": math.nan}, r"lr must be a finite number"),
        ({"n_iter": 0}, r"n_iter must be an integer of at least 1. Got 0"),
        ({"n_chains": 0}, r"n_chains must be an integer of at least 1. Got 0"),
        ({"record_every": 0}, r"record_every must be an integer of at least 1. Got 0"),
        ({"start": torch.zeros(3)}, r"shape \(2,\) or \(100, 2\). Got \(3,\)"),
        ({"methods": "sdg"}, r"Unknown method 'sdg'; did you mean 'sgd'"),
        ({"methods": []}, r"at least one method"),
        ({"methods": ["gd", GD()]}, r"label of its own. Got \['gd', 'gd'\]"),
        ({"methods": GLDConst(sigma=-1)}, r"sigma of gld_const"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_bad_input(quadratic, arguments, message):
    good = {"methods": "gd", "start": START, "lr": 0.1, "n_iter": 2}
    with pytest.raises(ValueError, match=message):
        simulate(quadratic, **(good | arguments))


@pytest.mark.parametrize(
    ("answer", "error", "got"),
    [
        (lambda theta: theta[:, :1] > 0, ValueError, r"shape \(5,\). Got shape \(5, 1"),
        (lambda theta: theta > 0, ValueError, r"Got shape \(5, 2\); .*all\(-1\)"),
        (lambda theta: (theta > 0).any(), ValueError, r"Got shape \(\)"),
        (lambda theta: theta[:1, 0] > 0, ValueError, r"Got shape \(1,\)"),
        (lambda theta: (theta[:, 0] > 0).to(torch.uint8), TypeError, "uint8"),
        (lambda theta: (theta[:, 0] > 0).long(), TypeError, r"torch\.int64"),
        (lambda theta: theta[:, 0], TypeError, r"Got torch\.float64; return a comp"),
        (lambda theta: (theta[:, 0] > 0).numpy(), TypeError, "Got ndarray"),
        (lambda theta: True, TypeError, "Got bool"),
        (lambda theta: None, TypeError, "Got NoneType"),
    ],
)
def test_a_target_answers_for_each_chain(quadratic, answer, error, got):
    asked = []

    def reached(theta):
        asked.append(theta)
        return answer(theta)

    options = {"lr": 0.1, "n_iter": 3, "n_chains": 5}
    with pytest.raises(error, match=f"reached must return .*{got}"):
        simulate(quadratic, ["gd", "sgd"], START, **options, reached=reached)
    assert len(asked) == 1  # before any step

    def later(theta):
        return theta[:, 0] > 0 if torch.equal(theta[0], START) else answer(theta)

    with pytest.raises(error, match=f"reached must return .*{got}"):
        simulate(quadratic, "gd", START, **options, reached=later)


def test_what_is_no_risk_of_chains_is_refused():
    with pytest.raises(TypeError, match=r"or an EmpiricalRisk.*Got Sequential"):
        simulate(_problems.network(), "gd", torch.zeros(2), lr=0.1, n_iter=1)


def test_no_target_no_rates(quadratic):
    run = simulate(quadratic, "gd", START, lr=0.1, n_iter=1)["gd"]
    assert isinstance(run, Simulation)
    for ask in (run.success_rate, run.exit_rate, run.mean_exit_time):
        with pytest.raises(ValueError, match="Without reached="):
            ask()


def test_wilson_intervals():
    """Roots of (p - p̂)² = z² p (1 - p)/n."""
    rate = Proportion.of(torch.arange(50) < 3, 0.9)
    z = norm.ppf(0.95)
    for p in (rate.low, rate.high):
        assert (p - 0.06) ** 2 == pytest.approx(z**2 * p * (1 - p) / 50)
    assert (rate.value, rate.count, rate.n) == (0.06, 3, 50)
    assert str(rate) == f"6.0% [{rate.low:.1%}, {rate.high:.1%}]"
    nobody = simulate_nobody()
    assert (float(nobody), float(nobody.stderr)) == (math.inf, math.inf)


def simulate_nobody():
    risk = QuadraticRisk(torch.eye(2), torch.zeros(1, 2))
    reached = {"reached": lambda theta: theta[:, 0] > 1}
    run = simulate(risk, "gd", torch.zeros(2), lr=0.1, n_iter=1, **reached)
    return run["gd"].mean_exit_time()


def test_data_of_another_number_of_chains():
    risk = TwoBasinsRisk.from_paper("matched", chains=(5,))
    with pytest.raises(ValueError, match="n_chains=7"):
        simulate(risk, "gd", risk.sharp_minimum, lr=0.006, n_iter=2, n_chains=7)
