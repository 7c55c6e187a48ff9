"""Points θ that a fit keeps, and what is asked of them."""

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from scipy.special import softmax
from skorch.callbacks import Callback
from torch import nn

from flatmin import NoisyDiffusionClassifier, compare_dynamics
from flatmin.dynamics import KeptParams, _kept_params
from flatmin.estimators import Trajectory
from flatmin.plotting import LandscapeDisplay

from ..interrupts import killed_after
from ._problems import Deep, blobs, classifier, flat, plane, regressor

X, y = blobs()
WARMUP = {"max_iter": 7, "lr": 0.05}


def assert_same(one, two):
    np.testing.assert_array_equal(one.iterations, two.iterations)
    np.testing.assert_array_equal(one.params, two.params)
    assert one.params.dtype == two.params.dtype


class EachStep(Callback):
    """Keeps θ at the ends of blocks."""

    def initialize(self):
        self.seen = []
        return self

    def on_train_begin(self, net, **kwargs):
        self.seen.append(flat(net.module_).copy())

    def on_epoch_end(self, net, **kwargs):
        self.seen.append(flat(net.module_).copy())


@pytest.mark.parametrize(
    "params",
    [
        {"method": "sgd"},
        {"method": "gld_full", "optimizer": "adam", "dtype": "float64"},
        {"method": "svag"},
        {"method": "gld_leading", "gradient_batch_size": 30},
        {"module": Deep, "optimizer": torch.optim.Adagrad},
    ],
    ids=lambda params: " ".join(map(str, params.values())),
)
def test_it_holds_the_points_of_the_run(params):
    """Against a callback that reads the module after each iteration."""
    seen = EachStep()
    whole = classifier(
        warmup=WARMUP, record_every=1, callbacks=[("seen", seen)], **params
    ).fit(X, y)
    callback = dict(whole.net_.callbacks_)["seen"]
    kept = classifier(warmup=WARMUP, keep_params_every=4, **params).fit(X, y)
    assert kept.trajectory_.iterations.tolist() == list(range(7, 38, 4))
    np.testing.assert_array_equal(kept.trajectory_.params, callback.seen[::4])
    np.testing.assert_array_equal(kept.params_, whole.params_)
    assert whole.trajectory_ is None


def test_metrics_are_as_in_the_history():
    metrics = {
        "norm": lambda risk, theta: theta.norm(),
        "value": lambda risk, theta: risk.value(theta),
    }
    clf = classifier(
        keep_params_every=10, warmup=WARMUP, metrics=metrics, dtype="float64"
    ).fit(X, y)
    found = clf.trajectory_.measure(clf.risk_, metrics)
    rows = clf.history_[clf.history_["phase"] == "noise"]
    wanted = rows[["iteration", "norm", "value"]].reset_index(drop=True)
    assert_frame_equal(found, wanted)


def test_a_metric_that_is_undefined_later():
    trajectory = Trajectory(np.array([0, 5]), np.ones((2, 15)) * [[1.0], [2.0]])
    module = nn.Linear(4, 3)
    clf = classifier(module=module, max_iter=1).fit(X, y)

    def picky(risk, theta):
        if theta[0] > 1:
            raise ValueError("too large")
        return 1.0

    with pytest.warns(UserWarning, match="at first in iteration 5: too large"):
        found = trajectory.measure(clf.risk_, {"picky": picky})
    np.testing.assert_array_equal(found["picky"], [1, np.nan])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("risk", {}), TypeError, "risk must be an EmpiricalRisk"),
        ((None, [len]), TypeError, "metrics must be a dict"),
        ((None, {"iteration": len}), ValueError, "does not use yet"),
        ((None, {"a": 3}), TypeError, "must be a function of"),
        ((None, {"a": lambda risk, theta: "b"}), TypeError, "must return a number"),
    ],
)
def test_measure_refuses(arguments, error, match):
    clf = classifier(keep_params_every=10).fit(X, y)
    risk, metrics = arguments
    with pytest.raises(error, match=match):
        clf.trajectory_.measure(risk or clf.risk_, metrics)


def test_measure_needs_a_risk_of_as_many_parameters():
    other = classifier(module=nn.Linear(4, 3)).fit(X, y)
    clf = classifier(keep_params_every=10).fit(X, y)
    with pytest.raises(
        ValueError, match=r"67 parameters of the points\. Got one of 15"
    ):
        clf.trajectory_.measure(other.risk_, {})


@pytest.mark.parametrize("n_writes", [1, 4, 6, 9])
def test_a_resumed_run_has_the_same(monkeypatch, tmp_path, n_writes):
    settings = {"warmup": WARMUP, "keep_params_every": 3, "method": "gld_full"}
    whole = classifier(**settings).fit(X, y)
    folder = {"path": tmp_path / "run", "every": 4}
    with killed_after(monkeypatch, n_writes):
        classifier(checkpoint_dir=folder, **settings).fit(X, y)
    again = classifier(checkpoint_dir=folder, **settings).fit(X, y)
    assert_same(again.trajectory_, whole.trajectory_)
    read = classifier(checkpoint_dir=folder, **settings).fit(X, y)
    assert_same(read.trajectory_, whole.trajectory_)
    other = classifier(checkpoint_dir=folder, **settings | {"keep_params_every": 2})
    with pytest.raises(ValueError, match="keep_params_every"):
        other.fit(X, y)


@pytest.mark.parametrize("first", [8, 9])
def test_a_warm_start_goes_on(first):
    """A plain law: of 30 iterations and of two fits of them."""
    settings = {"method": "gld_full", "keep_params_every": 4, "warmup": WARMUP}
    whole = classifier(**settings).fit(X, y)
    parts = classifier(**settings, max_iter=first, warm_start=True).fit(X, y)
    parts.set_params(max_iter=30 - first).fit(X, y)
    assert_same(parts.trajectory_, whole.trajectory_)
    parts.set_params(keep_params_every=None).fit(X, y)
    assert parts.trajectory_ is None
    parts.set_params(keep_params_every=4, dtype="float64", max_iter=4).fit(X, y)
    begins = 60 - first
    wanted = [7 + t for t in range(begins, begins + 5) if t % 4 == 0]
    assert parts.trajectory_.iterations.tolist() == wanted
    assert parts.trajectory_.params.dtype == np.float64


def test_without_iterations_there_is_the_start():
    clf = classifier(max_iter=0, keep_params_every=5, warmup=WARMUP).fit(X, y)
    assert clf.trajectory_.iterations.tolist() == [7]
    np.testing.assert_array_equal(clf.trajectory_.params, [clf.params_])


def test_what_a_divergence_takes_back_is_not_kept():
    with pytest.warns(UserWarning, match="Stopped at the last"):
        clf = regressor(
            keep_params_every=1, lr=30.0, max_iter=500, on_divergence="stop"
        ).fit(*plane())
    assert 0 < clf.n_iter_ < 500
    assert clf.trajectory_.iterations.tolist() == list(range(clf.n_iter_ + 1))
    np.testing.assert_array_equal(clf.trajectory_.params[-1], clf.params_)


def test_a_device_that_is_read_in_parcels(monkeypatch):
    """As on a GPU: points wait there, and are fetched together."""

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    kept = KeptParams(torch.zeros(2), 2, 100)
    monkeypatch.setattr(_kept_params, "_N_WAITING", 3)
    for t in range(60):
        theta = torch.full((2,), float(t)).as_subclass(Elsewhere)
        kept.keep_if_due(t, theta)
        theta += 0.5  # it moves in place
    kept.drop_after(50)
    iterations, rows = kept.rows()
    assert iterations == list(range(0, 51, 2))
    assert rows[:, 1].tolist() == [float(t) for t in iterations]


def test_what_does_not_fit_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(_kept_params, "available_memory", lambda: 20 * 67 * 4)
    calls = []

    def count(risk, theta):
        calls.append(1)
        return 0.0

    clf = classifier(keep_params_every=1, metrics={"count": count})
    with pytest.raises(ValueError, match=r"31 points of 67 numbers, .* at most 20 fit"):
        clf.fit(X, y)
    assert not calls
    clf.set_params(max_iter=19, metrics=None, warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="keep 39 points"):
        clf.fit(X, y)


def test_an_altered_checkpoint_is_refused():
    kept = KeptParams(torch.zeros(3), 2, 10)
    kept.keep_if_due(0, torch.ones(3))
    state = kept.state_dict()
    kept.load_state_dict(state)
    for wrong in (
        {"iterations": [0, 2]},
        {"iterations": [-1]},
        {"iterations": (0,)},
        {"iterations": [0] * 1000},
        {"params": torch.ones(1, 4)},
        {"params": torch.ones(1, 3).double()},
        {"params": [1.0]},
    ):
        with pytest.raises(ValueError, match="another trajectory"):
            kept.load_state_dict(state | wrong)


def test_the_mean_of_probabilities():
    """Against logits computed by hand."""
    clf = classifier(
        module=nn.Linear(4, 3), keep_params_every=10, dtype="float64", method="gld_full"
    ).fit(X, y)
    before = clf.params_
    points = clf.trajectory_.params
    logits = [X @ p[:12].reshape(3, 4).T + p[12:] for p in points]
    wanted = np.mean([softmax(z, axis=1) for z in logits], axis=0)
    for params in (clf.trajectory_, points, points.tolist(), torch.tensor(points)):
        found = clf.predict_proba(X, params=params)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        np.testing.assert_array_equal(clf.predict(X, params), wanted.argmax(1))
    one = clf.predict_proba(X, params=clf.params_)
    np.testing.assert_array_equal(one, clf.predict_proba(X))
    np.testing.assert_array_equal(clf.params_, before)


def test_the_mean_of_two_classes_with_one_output():
    X2, y2 = blobs(n_classes=2)
    clf = classifier(module=nn.Linear(4, 1), keep_params_every=15).fit(X2, y2)
    points = clf.trajectory_.params.astype(float)
    second = np.mean([1 / (1 + np.exp(-(X2 @ p[:4] + p[4]))) for p in points], axis=0)
    found = clf.predict_proba(X2, clf.trajectory_)
    np.testing.assert_allclose(found[:, 1], second, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(
        clf.predict(X2, clf.trajectory_), (second > 0.5).astype(int)
    )


@pytest.mark.parametrize("n_targets", [None, 2])
def test_the_mean_of_a_regression(n_targets):
    """A linear network: the mean is that of the mean θ."""
    X, y = plane(n_targets=n_targets)
    n_out = n_targets or 1
    reg = regressor(
        module=nn.Linear(4, n_out), keep_params_every=3, dtype="float64"
    ).fit(X, y)
    mean = reg.trajectory_.params.mean(0)
    wanted = X @ mean[: 4 * n_out].reshape(n_out, 4).T + mean[4 * n_out :]
    found = reg.predict(X, params=reg.trajectory_)
    assert found.shape == y.shape
    np.testing.assert_allclose(found, wanted.reshape(y.shape), rtol=1e-10)


@pytest.mark.parametrize(
    ("params", "error", "match"),
    [
        (np.ones((2, 3)), ValueError, r"\(n_points, 67\)\. Got shape \(2, 3\)"),
        (np.ones((0, 67)), ValueError, "at least one"),
        (np.full((1, 67), np.nan), ValueError, "params"),
        (np.full((1, 67), 1e300), ValueError, "params"),
        ("a", (TypeError, ValueError), "params"),
    ],
)
def test_points_are_checked(params, error, match):
    clf = classifier().fit(X, y)
    with pytest.raises(error, match=match):
        clf.predict_proba(X, params=params)


def test_a_landscape_draws_it():
    clf = classifier(keep_params_every=5).fit(X, y)
    display = LandscapeDisplay.from_estimator(
        clf, directions="trajectory", trajectory=clf.trajectory_, n_points=3
    )
    assert len(display.trajectory) == len(clf.trajectory_) == 7


def test_a_comparison_keeps_none():
    with pytest.raises(ValueError, match="compare_dynamics keeps no trajectory_"):
        compare_dynamics(
            ["gd"], X, y, estimator=NoisyDiffusionClassifier(keep_params_every=5)
        )
