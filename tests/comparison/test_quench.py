"""The quench to a training loss: its first iterate, and what does not get there."""

import copy
import math

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from flatmin import compare_dynamics
from flatmin.comparison._plan import Plan, RiskSource
from flatmin.comparison._quench import descend_to_loss
from flatmin.risk import QuadraticRisk

from ..interrupts import killed_after
from ._problems import classifier, digits, norm

X, y, *_ = digits()


class Scripted:
    """Losses that are written down: θ is minus the number of steps."""

    def __init__(self, *losses, dtype=torch.float64):
        self.losses = torch.tensor(losses, dtype=dtype)
        self.n_calls = 0

    def value_and_gradient(self, theta):
        self.n_calls += 1
        return self.losses[-theta.long()][0], torch.ones_like(theta)

    def descend(self, loss, max_iter):
        return descend_to_loss(self, torch.zeros(1), loss, lr=1.0, max_iter=max_iter)


@pytest.mark.parametrize("n_steps", [1, 2, 15, 16, 17, 31, 32, 33, 70])
def test_the_first_iterate_of_a_quadratic(n_steps):
    h = torch.tensor([1.0, 0.1], dtype=torch.float64)
    start = torch.tensor([2.0, -3.0], dtype=torch.float64)
    # θ_t = (1 - ηh)^t θ₀, L = Σ h θ² / 2
    losses = [
        float((h * ((1 - 0.3 * h) ** t * start) ** 2).sum()) / 2
        for t in (n_steps - 1, n_steps)
    ]
    risk = QuadraticRisk(torch.diag(h), torch.zeros(1, 2, dtype=torch.float64))
    assert float(risk.value(start)) == pytest.approx(float((h * start**2).sum()) / 2)
    found = descend_to_loss(risk, start, sum(losses) / 2, lr=0.3, max_iter=100)
    assert (found.n_iter, found.reached) == (n_steps, True)
    assert found.loss == pytest.approx(losses[1])
    torch.testing.assert_close(found.theta, (1 - 0.3 * h) ** n_steps * start)
    # The bound counts steps, and the last iterate is looked at.
    assert descend_to_loss(
        risk, start, sum(losses) / 2, lr=0.3, max_iter=n_steps
    ).reached
    short = descend_to_loss(risk, start, sum(losses) / 2, lr=0.3, max_iter=n_steps - 1)
    assert (short.n_iter, short.reached) == (n_steps - 1, False)
    torch.testing.assert_close(short.theta, (1 - 0.3 * h) ** (n_steps - 1) * start)


@pytest.mark.parametrize(
    ("losses", "n_iter", "reached"),
    [
        ([5, 4, 1, 6, 7, 8], 2, True),  # it rises again before anybody looks
        ([1, 4, 1], 0, True),
        ([5, 4, 2, 9], 2, True),
        ([5, 4, 3, 9, 9, 9], 5, False),
        ([5, 4, 1, math.nan], 2, True),
        ([5, math.nan, 1], 1, False),
        ([5, 4, math.inf, 1], 2, False),
        ([5, -math.inf, 1], 1, False),
    ],
)
def test_the_first_one_counts(losses, n_iter, reached):
    found = Scripted(*losses).descend(2, len(losses) - 1)
    assert (found.n_iter, found.reached) == (n_iter, reached)
    np.testing.assert_equal(found.loss, losses[n_iter])
    if math.isfinite(found.loss):
        assert found.theta.tolist() == [-n_iter]


def test_the_loss_is_not_rounded_up_to():
    # The float32 next to 0.1 is above it.
    assert Scripted(1, 0.1, 0, dtype=torch.float32).descend(0.1, 2).n_iter == 2


def test_nobody_waits_for_a_loss_within_a_block():
    class Reads(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.n += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **kwargs or {})

    risk = QuadraticRisk(torch.eye(2), torch.zeros(1, 2))
    with Reads() as reads:
        assert (
            descend_to_loss(risk, torch.ones(2), 0.5, lr=0.01, max_iter=200).n_iter
            == 35
        )
    assert reads.n == 0
    scripted = Scripted(*[9.0] * 20, *[1.0] * 40)
    assert scripted.descend(2, 59).n_iter == 20
    assert scripted.n_calls == 32  # two blocks


def test_a_descent_goes_on_where_it_was():
    risk = QuadraticRisk(torch.eye(2), torch.zeros(1, 2))
    seen = []
    whole = descend_to_loss(
        risk,
        torch.ones(2),
        0.3,
        lr=0.01,
        max_iter=200,
        on_block=lambda *at: seen.append(at),
    )
    assert [n for _, n in seen] == [16, 32, 48]
    for theta, n in seen:
        found = descend_to_loss(risk, theta, 0.3, lr=0.01, max_iter=200, begin=n)
        assert (found.n_iter, found.loss) == (whole.n_iter, whole.loss)
        assert torch.equal(found.theta, whole.theta)


def compare(methods=("gd", "sgd"), **settings):
    given = {"estimator": classifier(), "n_seeds": [3, 1], "quench": 10}
    given |= {"quench_loss": 0.8, "quench_loss_iter": 300, "keep_params": True}
    return compare_dynamics(methods, X, y, **given | settings)


@pytest.fixture(scope="module")
def result():
    """Read only."""
    return compare(end_metrics={"end": norm}, metrics={"norm": norm})


def by_hand(module, theta, lr, loss):
    """Return the steps of a loop over plain autograd, and where they lead."""
    module = copy.deepcopy(module)
    names = [name for name, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]
    inputs, labels = torch.as_tensor(X), torch.as_tensor(y)
    theta = torch.as_tensor(theta, dtype=torch.float64)
    inputs = inputs.to(torch.float64)
    for step in range(1000):
        theta = theta.detach().requires_grad_()
        parts = theta.split([shape.numel() for shape in shapes])
        held = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        value = cross_entropy(functional_call(module, held, (inputs,)), labels)
        if value <= loss:
            return step, theta.detach().numpy()
        (gradient,) = torch.autograd.grad(value, theta)
        theta = theta - lr * gradient
    raise AssertionError("It does not get there.")


def test_it_is_the_first_iterate_of_a_loop_written_out():
    found = compare(estimator=classifier(dtype="float64"), quench=0, quench_lr=0.2)
    module = classifier(dtype="float64", max_iter=0, warmup=None).fit(X, y).module_
    ends = found.ends()
    for method in ("gd", "sgd"):
        start = found.params(method, 3, "noise")
        step, theta = by_hand(module, start, 0.2, 0.8)
        assert step > 16
        end = ends.loc[("quench_loss", method, 3)]
        assert end["iteration"] == 20 + step
        assert end["loss"] <= 0.8
        np.testing.assert_allclose(
            found.params(method, 3, "quench_loss"), theta, rtol=1e-9, atol=1e-12
        )


def test_it_is_what_a_fit_of_so_many_iterations_gives(result):
    end = result.ends().loc[("quench_loss", "sgd", 3)]
    start = result.params("sgd", 3, "noise")
    settings = {"method": "gd", "warmup": None, "params_init": start}
    settings |= {"max_iter": int(end["iteration"]) - 20, "record_every": 1}
    alone = classifier(**settings).fit(X, y)
    losses = alone.history_["loss"].to_numpy()
    assert end["loss"] == losses[-1] <= 0.8 < losses[-2]
    np.testing.assert_array_equal(alone.params_, result.params("sgd", 3, "quench_loss"))
    for column in ("train_score", "gradient_norm"):
        assert end[column] == alone.history_[column].iloc[-1]
    assert end["norm"] == end["end"] == float(torch.as_tensor(alone.params_).norm())
    assert end["noise_norm"] == 0


def test_both_quenches_leave_each_other_alone(result):
    rows = result.table[result.table["phase"] != "quench_loss"]
    alone = compare(
        end_metrics={"end": norm},
        metrics={"norm": norm},
        quench_loss=None,
        quench_loss_iter=None,
    )
    assert_frame_equal(rows.reset_index(drop=True), alone.table, check_exact=True)
    assert "quench_loss" not in alone.units
    assert (result.units["quench_loss"] == "reached").all()
    assert (result.table["phase"] == "quench_loss").sum() == 4
    summary = result.summary(columns=["loss"]).reset_index()
    assert summary["phase"].unique().tolist() == ["noise", "quench", "quench_loss"]
    assert (summary["n_left_out"] == 0).all()


def test_units_with_another_loss_are_left_out_and_counted():
    methods = {"gd": {}, "fast": {"method": "gd", "lr": 0.5}}
    losses = compare(methods, quench_loss=None, quench_loss_iter=None).ends()["loss"]
    # After the noise those of seed 1 are below it, and those of seed 3 above.
    reach = 1.09
    assert (losses["noise"].unstack("seed") <= reach).all().tolist() == [True, False]
    found = compare(methods, quench_loss=reach, quench_loss_iter=5000)
    outcome = found.units.set_index(["method", "seed"])["quench_loss"]
    for method in methods:
        assert outcome[method, 3] == "reached"
        assert outcome[method, 1] == "below before"
    assert (found.units["status"] == "done").all()
    ends = found.ends().loc["quench_loss"]
    assert ends.index.tolist() == [("fast", 3), ("gd", 3)]
    # One loss, so far as a step changes it.
    np.testing.assert_allclose(ends["loss"], reach, rtol=0.02)
    summary = found.summary(columns=["loss"])
    rows = summary.loc[("loss", "quench_loss")]
    assert rows["n_left_out"].tolist() == [1, 1]
    assert rows["n"].tolist() == [1, 1]
    assert rows["mean"].tolist() == ends["loss"][::-1].tolist()
    assert (summary.loc[("loss", "noise"), "n_left_out"] == 0).all()
    # Where it stopped is in the table.
    row = found.table.query("method == 'fast' and seed == 1 and phase == 'quench_loss'")
    assert row["iteration"].tolist() == [20]
    assert row["loss"].tolist() == [losses["noise", "fast", 1]]
    with pytest.raises(ValueError, match=r"loss of 1.09 is 'below before'"):
        found.params("fast", 1, "quench_loss")


def test_where_no_unit_gets_there():
    found = compare(quench_loss=1e-3, quench_loss_iter=20)
    assert (found.units["quench_loss"] == "not reached").all()
    assert len(found.failures) == 0
    assert "quench_loss" not in found.ends().index
    rows = found.summary(columns=["loss"]).loc[("loss", "quench_loss")]
    assert rows["n_left_out"].tolist() == [2, 2]
    assert rows["n"].tolist() == [0, 0]
    stopped = found.table.query("phase == 'quench_loss'")
    assert (stopped["iteration"] == 40).all()
    settings = {"method": "gd", "warmup": None, "random_state": 3}
    settings["params_init"] = found.params("sgd", 3, "noise")
    alone = classifier(**settings).fit(X, y)  # 20 iterations
    sgd = stopped.query("method == 'sgd' and seed == 3")
    assert sgd["loss"].tolist() == [alone.history_["loss"].iloc[-1]]
    with pytest.raises(ValueError, match="is 'not reached'"):
        found.params("sgd", 3, "quench_loss")


def test_a_descent_that_diverges_is_a_failure():
    found = compare(quench_lr=1e30, quench=0, quench_loss=1e-3)
    assert found.failures["phase"].tolist() == ["quench_loss"] * 4
    assert set(found.units["quench_loss"]) == {"failed"}
    assert set(found.failures["error"]) == {"DivergenceError"}
    assert found.failures["message"].str.contains("Try a smaller quench_lr").all()
    assert "quench_loss" not in found.ends().index
    # What it came from is not lost, nor counted as failed.
    assert len(found.ends().loc["noise"]) == 4
    summary = found.summary(columns=["loss"])
    assert (summary.loc[("loss", "noise"), "n_failed"] == 0).all()
    with pytest.raises(
        ValueError, match="failed in 'quench_loss' with DivergenceError"
    ):
        found.params("gd", 3, "quench_loss")


def test_a_failure_before_it():
    found = compare({"gd": {"lr": 1e30}})
    assert found.units["quench_loss"].tolist() == ["failed", "failed"]
    assert found.units["phase"].tolist() == ["noise", "noise"]


@pytest.mark.filterwarnings("ignore:metrics.'gain'. is NaN:UserWarning")
def test_a_metric_that_is_not_defined_where_a_fit_begins_is_nan_there():
    """The warm-up has shown that it is a metric."""

    def gain(risk, theta):
        loss = float(risk.value(theta))
        if loss < 1.1:  # between the switch and the end of the noise
            raise ZeroDivisionError("0/0")
        return loss

    found = compare(["gd"], n_seeds=[1], metrics={"gain": gain})
    assert len(found.failures) == 0, found.failures["message"].tolist()
    table = found.table.query("phase != 'warmup'")
    losses = table["loss"].where(table["loss"] >= 1.1)
    assert losses.isna().tolist() == [False, False, True, True, True, True]
    np.testing.assert_allclose(table["gain"], losses, rtol=1e-6)
    with pytest.warns(UserWarning, match=r"metrics\['gain'\] is NaN in a row .* 0/0"):
        compare(["gd"], n_seeds=[1], metrics={"gain": gain})


def test_it_goes_on_after_a_kill(monkeypatch, tmp_path, result):
    settings = {"end_metrics": {"end": norm}, "metrics": {"norm": norm}}
    settings |= {"n_seeds": [3], "checkpoint_dir": tmp_path}
    # A warm-up writes 4, and noise and quench 5 or 2.
    for n_writes in (14, 2):
        with killed_after(monkeypatch, n_writes):
            compare(["sgd"], **settings)
        assert list(tmp_path.glob("sgd-*-3/quench_loss/checkpoint-*"))
    found = compare(["sgd"], **settings)
    same = result.table.query("method == 'sgd' and seed == 3").reset_index(drop=True)
    assert_frame_equal(found.table, same[list(found.table)], check_exact=True)
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_folders_of_versions_without_it_stay_usable():
    names = ["data", "metrics", "end_metrics", "quench", "quench_lr", "n_threads"]
    assert list(Plan(RiskSource((X, y), None), keep_params=True).identity()) == names
    protocol = compare(["gd"], n_seeds=[1], quench_loss=None, quench_loss_iter=None)
    names += ["estimator", "methods", "data_hash", "hashes"]
    assert protocol.protocol.keys() == {*names}
