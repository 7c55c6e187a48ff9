"""A monitor in somebody else's training loop."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.analysis import FlatnessMonitor
from flatmin.analysis._counted_risk import WorkCounter, _CountedRisk, counted
from flatmin.analysis._monitored import OF_ALL_ONLY, QUANTITIES, MeasuredPoint
from flatmin.measures import SHARPNESS_MEASURES, max_eigenvalue
from flatmin.risk import EmpiricalRisk

N = 64
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)).double()
y = (X @ torch.tensor([1.0, -1.0, 0.5, 2.0]).double() > 0).long()
EVERYTHING = 1e6  # a budget


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def dense(net, X=X, y=y):
    """Return per-example gradients (N, D) and H by autograd of the plain module."""
    params = {name: p.detach() for name, p in net.named_parameters()}
    sizes = [p.numel() for p in params.values()]
    theta = torch.cat([p.reshape(-1) for p in params.values()])

    def losses(theta):
        views = zip(params.items(), theta.split(sizes), strict=True)
        named = {name: part.view(p.shape) for (name, p), part in views}
        outputs = torch.func.functional_call(net, named, (X,))
        return F.cross_entropy(outputs, y, reduction="none")

    gradients = torch.autograd.functional.jacobian(losses, theta)
    hessian = torch.autograd.functional.hessian(lambda t: losses(t).mean(), theta)
    return losses(theta).detach(), gradients, hessian


def step(net, lr=0.5):
    loss = F.cross_entropy(net(X), y)
    for p, g in zip(
        net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True
    ):
        p.data -= lr * g


def test_with_all_examples_the_numbers_are_those_of_dense_matrices(net):
    monitor = FlatnessMonitor(
        X,
        y,
        loss="cross_entropy",
        quantities=["loss", *list(QUANTITIES)[1:-1]],
        budget=EVERYTHING,
        tol=1e-6,
    )
    for at in range(2):
        row = monitor(net, at, lr=0.3)
        losses, rows, hessian = dense(net)
        mean = rows.mean(0)
        sigma = (rows - mean).T @ (rows - mean) / N
        top = torch.linalg.eigvalsh(hessian)[-1]
        wanted = {
            "loss": losses.mean(),
            "gradient_norm": mean.norm(),
            "max_eigenvalue": top,
            "edge_of_stability": top * 0.15,
            "hessian_trace": hessian.trace(),
            "covariance_trace": sigma.trace(),
            "simple_noise_scale": sigma.trace() / mean.square().sum(),
            "curvature_noise_scale": (hessian @ sigma).trace()
            / (mean @ hessian @ mean),
        }
        for name, value in wanted.items():
            error = max(1e-6 * abs(float(value)), 4 * row[f"{name}_stderr"])
            assert row[name] == pytest.approx(float(value), abs=error), name
        assert row["n_examples"] == N
        step(net)
    assert monitor.history_["step"].tolist() == [0, 1]
    assert monitor.n_examples_ == N


@pytest.mark.parametrize("name", ["squared", "covariance_trace"])
def test_estimates_of_a_subset_are_unbiased(net, name):
    """Over all subsets of 3 of 6 examples, with the divisor N of the whole."""
    from flatmin.analysis._monitored import _squared_gradient_norm

    few = 6
    quantity = {**QUANTITIES, "squared": _squared_gradient_norm}[name]
    risk = EmpiricalRisk(net, "cross_entropy", X[:few], y[:few])
    settings = {"n_examples": few, "seed": 0, "lr": None, "v0": None}
    settings |= {"tol": 1e-2, "rtol": 0.1, "max_matvecs": 30}
    found = [
        float(
            quantity(
                MeasuredPoint(
                    risk.subset(torch.tensor(chosen)), risk.params(), **settings
                )
            )
        )
        for chosen in itertools.combinations(range(few), 3)
    ]
    _, rows, _ = dense(net, X[:few], y[:few])
    mean = rows.mean(0)
    wanted = mean.square().sum() if name == "squared" else rows.var(0, False).sum()
    assert np.mean(found) == pytest.approx(float(wanted), rel=1e-8)


def test_the_error_that_is_told_is_the_error_that_is_made(net):
    for _at in range(30):
        step(net)
    many = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1)).double()
    labels = (many[:, 0] + many[:, 1] * many[:, 2] > 0).long()
    names = ["loss", "max_eigenvalue", "covariance_trace", "gradient_norm"]
    options = {"loss": "cross_entropy", "quantities": names}
    truth = FlatnessMonitor(many, labels, budget=EVERYTHING, **options)(net, 0)
    rows = [
        FlatnessMonitor(many, labels, budget=8, random_state=seed, **options)(net, 0)
        for seed in range(16)
    ]
    for name in names:
        made = np.sqrt(np.mean([(row[name] - truth[name]) ** 2 for row in rows]))
        told = np.sqrt(np.mean([row[f"{name}_stderr"] ** 2 for row in rows]))
        assert truth[f"{name}_stderr"] == 0
        assert 0.6 < told / made < 1.7, name
    assert {row["n_examples"] for row in rows} == {rows[0]["n_examples"]}
    assert max(row["cost"] for row in rows) <= 8.5


def many():
    """Return 600 examples whose labels no network of three units fits."""
    rng = torch.Generator().manual_seed(1)
    inputs = torch.randn(600, 4, generator=rng).double()
    noise = torch.randn(600, generator=rng)
    return inputs, (inputs[:, 0] + 0.5 * noise > 0).long()


def test_of_a_subset_near_a_minimum_the_gradient_norm_has_an_error(net):
    """The estimate of its square is then below 0 in every second draw."""
    inputs, labels = many()
    for _at in range(300):
        loss = F.cross_entropy(net(inputs), labels)
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), slopes, strict=True):
                p -= 0.5 * g
    _, gradients, _ = dense(net, inputs, labels)
    norm = float(gradients.mean(0).norm())
    scale = float(gradients.var(0, correction=0).sum()) / norm**2
    names = ["gradient_norm", "simple_noise_scale"]
    options = {"loss": "cross_entropy", "quantities": names, "budget": 2.0}
    rows = [
        FlatnessMonitor(inputs, labels, random_state=seed, **options)(net, 0)
        for seed in range(16, 40)
    ]
    assert rows[0]["n_examples"] < 600
    assert 3 < sum(row["gradient_norm"] == 0 for row in rows) < 21
    for name, truth in zip(names, [norm, scale], strict=True):
        errors = np.array([row[f"{name}_stderr"] for row in rows])
        found = np.array([row[name] for row in rows])
        assert (errors > 0).all(), name
        with np.errstate(invalid="ignore"):
            missed = np.abs(found - truth) > 2 * errors
        assert missed.mean() < 0.14 + 2 * np.sqrt(0.14 * 0.86 / 24), name
    # An error of any size would cover: it is that of 86 draws of 600.
    trace = float(gradients.var(0, correction=0).sum())
    spread = math.sqrt(trace / rows[0]["n_examples"])
    assert max(row["gradient_norm_stderr"] for row in rows) < 2 * spread


def test_the_noise_scale_of_a_subset_where_the_gradient_is_clear(net):
    inputs, labels = many()
    _, gradients, _ = dense(net, inputs, labels)
    scale = float(gradients.var(0, correction=0).sum() / gradients.mean(0).norm() ** 2)
    options = {"loss": "cross_entropy", "quantities": ["simple_noise_scale"]}
    rows = [
        FlatnessMonitor(inputs, labels, budget=5, random_state=seed, **options)(net, 0)
        for seed in range(24)
    ]
    found = np.array([row["simple_noise_scale"] for row in rows])
    errors = np.array([row["simple_noise_scale_stderr"] for row in rows])
    assert rows[0]["n_examples"] < 600
    made, told = np.sqrt(np.mean((found - scale) ** 2)), np.median(errors)
    assert 0.5 < told / made < 2


def test_every_quantity_of_a_subset_has_an_error(net):
    inputs, labels = many()
    names = [n for n in (*QUANTITIES, *SHARPNESS_MEASURES) if n not in OF_ALL_ONLY]
    names = list(dict.fromkeys(names))
    options = {"loss": "cross_entropy", "quantities": names, "budget": 100.0}
    row = FlatnessMonitor(inputs, labels, **options)(net, 0, lr=0.1)
    assert row["n_examples"] < 600
    errors = {name: row[name] for name in row if name.endswith("_stderr")}
    assert len(errors) == len(names) + 2
    # Of an alignment some numbers have none that is known.
    without = {name for name, error in errors.items() if math.isnan(error)}
    assert without <= {name for name in errors if name.startswith("alignment_")}
    assert all(errors[name] > 0 for name in errors.keys() - without)


def test_of_equal_examples_a_subset_is_all(net):
    equal, labels = X[:1].expand(400, 4), y[:1].expand(400)
    names = ["gradient_norm", "simple_noise_scale"]
    options = {"loss": "cross_entropy", "quantities": names, "budget": 2.0}
    row = FlatnessMonitor(equal, labels, **options)(net, 0)
    _, gradients, _ = dense(net, X[:1], y[:1])
    assert row["n_examples"] < 400
    assert row["gradient_norm"] == pytest.approx(float(gradients.norm()), rel=1e-9)
    assert row["gradient_norm_stderr"] == pytest.approx(0, abs=1e-9)
    assert row["simple_noise_scale"] == pytest.approx(0, abs=1e-9)


def test_the_module_and_the_generators_are_as_before(net):
    net = nn.Sequential(net, nn.Dropout(0.5), nn.BatchNorm1d(2).double()).train()
    F.cross_entropy(net(X), y).backward()
    before = copy.deepcopy(net.state_dict())
    gradients = [p.grad.clone() for p in net.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    monitor = FlatnessMonitor(X, y, loss="cross_entropy", budget=EVERYTHING)
    with pytest.warns(UserWarning, match="active dropout"):
        row = monitor(net, 0)
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    grads = [p.grad for p in net.parameters()]
    assert all(map(torch.equal, gradients, grads))
    assert net.training
    assert net[1].training
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    # With the running statistics that it has at this step.
    wanted = F.cross_entropy(copy.deepcopy(net).eval()(X), y)
    assert row["loss"] == pytest.approx(float(wanted.detach()))


def test_the_same_whatever_was_measured_between(net):
    options = {
        "loss": "cross_entropy",
        "quantities": ["hessian_trace"],
        "budget": EVERYTHING,
    }
    often, seldom = (FlatnessMonitor(X, y, every=every, **options) for every in (1, 3))
    for at in range(7):
        found = [monitor(net, at) for monitor in (often, seldom)]
        assert found[1] == (found[0] if at % 3 == 0 else {})
        step(net)
    assert seldom.history_["step"].tolist() == [0, 3, 6]


def test_what_is_counted(net):
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    theta, counter = risk.params(), WorkCounter()
    spy = counted(risk, counter)

    def cost(call):
        before = counter.n_gradients
        call()
        return round((counter.n_gradients - before) / N, 9)

    assert cost(lambda: spy.gradient(theta)) == 1
    assert cost(lambda: spy.value(theta)) == pytest.approx(1 / 3)
    assert cost(lambda: spy.value_gradient_and_variances(theta)) == 2
    assert cost(lambda: spy.subset(torch.arange(N // 2)).gradient(theta)) == 0.5
    point = spy.linearize(theta)
    assert cost(lambda: point.hvp(theta)) == 2
    assert cost(lambda: list(spy.per_example_gradients(theta))) == 2
    found = []
    spent = cost(lambda: found.append(max_eigenvalue(spy, theta)))
    assert spent == 1 + 2 * found[0].n_matvecs
    assert torch.equal(spy.gradient(theta), risk.gradient(theta))


def test_every_word_that_looks_at_examples_is_counted():
    free = {"audit", "check_gauss_newton", "check_label_noise", "check_likelihood"}
    free |= {
        "frozen_module",
        "keeps_graph",
        "layout",
        "batch_norm",
        "set_batch_statistics",
    }
    free |= {"check_examples", "check_running_statistics"}
    free |= {"n_examples", "n_outputs", "n_params", "params", "paths", "set_params"}
    free |= {"distributed"}
    free |= {"subset", "to", "update_from", "with_module"}
    # They ask for another one, which counts.
    free |= {"batch_gradient"}
    public = {name for name in dir(EmpiricalRisk) if not name.startswith("_")}
    assert {n for n in public if n not in vars(_CountedRisk)} == free


def twice(risk, theta):
    return 2 * risk.value(theta)


def both(risk, theta):
    return {"one": 1.0, "top": max_eigenvalue(risk, theta)}


def test_functions_of_a_user(net):
    monitor = FlatnessMonitor(
        X, y, loss="cross_entropy", quantities=["loss", twice], budget=EVERYTHING
    )
    row = monitor(net, 0)
    assert row["twice"] == pytest.approx(2 * row["loss"])
    monitor = FlatnessMonitor(
        X,
        y,
        loss="cross_entropy",
        quantities={"mine": both, "flat": "expected"},
        budget=EVERYTHING,
    )
    row = monitor(net, 0)
    assert row["mine_one"] == 1
    top = torch.linalg.eigvalsh(dense(net)[2])[-1]
    assert row["mine_top"] == pytest.approx(float(top), rel=1e-6)
    assert row["flat_stderr"] > 0


def test_a_sharpness_measure_gets_the_settings(net, monkeypatch):
    seen = []

    def own(risk, theta, *, tol=0.0, rtol=0.0, max_matvecs=0, rng=None):
        seen.append((tol, rtol, max_matvecs, type(rng)))
        return 1.0

    def bounded(risk, theta, *, max_matvecs=0):  # of a search, not of a trace
        seen.append(max_matvecs)
        return 1.0

    monkeypatch.setitem(SHARPNESS_MEASURES, "own", own)
    monkeypatch.setitem(SHARPNESS_MEASURES, "bounded", bounded)
    rows = [
        FlatnessMonitor(
            *(X, y),
            loss="cross_entropy",
            quantities=["own", "bounded", "expected"],
            budget=EVERYTHING,
            random_state=seed,
            rtol=0.3,
        )(net, 0)
        for seed in (0, 1, 1)
    ]
    assert set(seen) == {(1e-2, 0.3, 30, torch.Generator), 0}
    expected = [row["expected"] for row in rows]
    assert expected[0] != expected[1] == expected[2]


def test_of_a_subset_a_function_of_a_user_has_no_error_that_is_known(net):
    quantities = {"mine": both, "again": twice, "loss": "loss"}
    options = {"loss": "cross_entropy", "quantities": quantities}
    many = X.repeat(10, 1) + torch.arange(10 * N)[:, None] / 640, y.repeat(10)
    row = FlatnessMonitor(*many, budget=10, **options)(net, 0)
    assert row["n_examples"] < 10 * N
    assert math.isnan(row["again_stderr"])
    assert math.isnan(row["mine_top_stderr"])
    assert row["loss_stderr"] > 0
    row = FlatnessMonitor(*many, budget=EVERYTHING, **options)(net, 0)
    assert row["again_stderr"] == 0 == row["mine_top_stderr"]


@pytest.mark.parametrize("name", ["sam", "asam", "batch", "curvature_noise_scale"])
def test_what_goes_along_the_gradient_is_refused_on_a_subset(net, name):
    """At a minimum "sam" of n of N examples is √(N/n) times too large, or more."""
    options = {"loss": "cross_entropy", "quantities": {"mine": name}}
    with pytest.raises(ValueError, match=f"'{name}' of a part .* budget=") as info:
        FlatnessMonitor(X, y, budget=1, **options)(net, 0)
    told = float(str(info.value).split("pass budget=")[1].split()[0])
    assert FlatnessMonitor(X, y, budget=told, **options)(net, 0)["n_examples"] == N


def test_of_a_subset_vectors_say_nothing_of_all(net):
    options = {"loss": "cross_entropy", "quantities": ["alignment"]}
    many = X.repeat(10, 1) + torch.arange(10 * N)[:, None] / 640, y.repeat(10)
    row = FlatnessMonitor(*many, budget=100, **options)(net, 0)
    assert row["n_examples"] < 10 * N
    for name in ("alignment_overlap", "alignment_first_alignment"):
        assert math.isnan(row[name])
        assert math.isnan(row[f"{name}_stderr"])
    assert row["alignment_anisotropy_gain_stderr"] > 0


def text(risk, theta):
    return "flat"


def a_list(risk, theta):
    return [1.0]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"quantities": "loss"}, TypeError, "must be names or functions"),
        ({"quantities": []}, ValueError, "at least one"),
        ({"quantities": ["flatness"]}, ValueError, "'flatness'"),
        ({"quantities": ["loss", "loss"]}, ValueError, "'loss' twice"),
        ({"quantities": {"step": "loss"}}, ValueError, "'step'"),
        ({"quantities": [3]}, TypeError, "must be callable|can be called|function"),
        ({"every": 0}, ValueError, "every"),
        ({"budget": 0}, ValueError, "budget"),
        ({"budget": math.nan}, ValueError, "budget"),
        ({"tol": -1}, ValueError, "tol"),
    ],
)
def test_wrong_settings_are_refused_at_once(options, error, match):
    with pytest.raises(error, match=match):
        FlatnessMonitor(X, y, loss="cross_entropy", **options)


@pytest.mark.parametrize("function", [text, a_list])
def test_a_measure_that_returns_no_number(net, function):
    monitor = FlatnessMonitor(X, y, loss="cross_entropy", quantities=[function])
    with pytest.raises(TypeError, match=rf"'{function.__name__}' must return a number"):
        monitor(net, 0)


def test_other_calls_that_are_refused(net):
    monitor = FlatnessMonitor(X, y, loss="cross_entropy", budget=0.1)
    with pytest.raises(ValueError, match=r"must reach for 32 examples.*budget="):
        monitor(net, 0)
    monitor = FlatnessMonitor(X, y, loss="cross_entropy", budget=EVERYTHING)
    monitor(net, 0)
    wider = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    with pytest.raises(ValueError, match=r"0.weight of shape \(7, 4\) and not"):
        monitor(wider, 1)
    assert len(monitor.history_) == 1
    with pytest.raises(ValueError, match="step"):
        monitor(net, -1)
    edge = FlatnessMonitor(
        X, y, loss="cross_entropy", quantities=["edge_of_stability"], budget=EVERYTHING
    )
    with pytest.raises(ValueError, match="lr="):
        edge(net, 0)


def test_the_budget_that_is_named_is_enough(net):
    options = {"loss": "cross_entropy", "quantities": ["max_eigenvalue"]}
    with pytest.raises(ValueError, match="budget=") as caught:
        FlatnessMonitor(X, y, budget=0.1, **options)(net, 0)
    named = float(str(caught.value).split("pass budget=")[1].split()[0])
    assert FlatnessMonitor(X, y, budget=named, **options)(net, 0)["n_examples"] >= 32


def test_several_arrays_and_targets_by_name():
    class Parts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(X.shape[1], int(y.max()) + 1)

        def forward(self, left, right):
            return {"logits": self.linear(torch.cat([left, right], 1))}

    module, half = Parts(), X.shape[1] // 2
    held = {"left": X[:, :half], "labels": y, "right": X[:, half:]}
    options = {"loss": "cross_entropy", "budget": EVERYTHING}
    found = FlatnessMonitor(held, target="labels", **options)(module, 0)
    assert found == pytest.approx(FlatnessMonitor(X, y, **options)(module.linear, 0))


def test_a_penalty_is_in_what_is_measured(net):
    losses, gradients, hessian = dense(net)
    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    monitor = FlatnessMonitor(
        X,
        y,
        loss="cross_entropy",
        l2=0.5,
        quantities=["loss", "gradient_norm", "max_eigenvalue", "covariance_trace"],
        budget=EVERYTHING,
    )
    row = monitor(net, 0)
    assert row["loss"] == pytest.approx(float(losses.mean() + theta @ theta / 4))
    gradient = gradients.mean(0) + theta / 2
    assert row["gradient_norm"] == pytest.approx(float(gradient.norm()))
    largest = float(torch.linalg.eigvalsh(hessian)[-1]) + 0.5
    assert row["max_eigenvalue"] == pytest.approx(largest, rel=1e-2)
    right = float(gradients.var(0, correction=0).sum())
    assert row["covariance_trace"] == pytest.approx(right)


def test_a_counted_risk_takes_several_points():
    torch.manual_seed(0)
    X = torch.randn(5, 2, dtype=torch.float64)
    risk = EmpiricalRisk(nn.Linear(2, 1).double(), "squared_error", X, X[:, :1])
    thetas = torch.randn(3, 3, dtype=torch.float64)
    v = torch.randn(3, 3, dtype=torch.float64)
    found = counted(risk, WorkCounter()).linearize(thetas).hvp(v)
    features = torch.cat([X, torch.ones(5, 1, dtype=torch.float64)], 1)
    H = 2 / 5 * features.mT @ features  # of a linear model, at every θ
    torch.testing.assert_close(found, v @ H, rtol=1e-12, atol=1e-12)
