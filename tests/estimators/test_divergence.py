"""A loss that is not finite, and Ctrl-C."""

import signal
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from flatmin import NoisyDiffusionRegressor
from flatmin.dynamics import DivergenceError
from flatmin.noise import METHODS

from ._problems import blobs, classifier, flat, plane, regressor

X, y = plane()
TOO_MUCH = {"lr": 1.0, "max_iter": 100}


@pytest.mark.parametrize("method", METHODS)
def test_the_error_says_when_and_what_to_try(method):
    reg = regressor(method=method, **TOO_MUCH)
    with pytest.raises(
        DivergenceError,
        match=r"The (loss|squared gradient) became (inf|nan) at iteration \d+ with "
        r"lr=1; the last finite loss was \d\S+e\+\d+\. Try a smaller lr, a smaller n",
    ):
        reg.fit(X, y)
    with pytest.raises(NotFittedError):
        reg.predict(X)


@pytest.mark.parametrize("method", METHODS)
def test_stop_keeps_the_last_finite_loss_and_warns(method):
    reg = regressor(method=method, on_divergence="stop", **TOO_MUCH)
    with pytest.warns(ConvergenceWarning, match=r"The .* became .*'stop'") as warned:
        reg.fit(X, y)
    assert warned[0].filename == __file__
    assert np.isfinite(reg.params_).all()
    np.testing.assert_array_equal(reg.params_, flat(reg.module_))
    last = reg.history_.iloc[-1]
    theta = torch.as_tensor(reg.params_)
    assert last["loss"] == pytest.approx(float(reg.risk_.value(theta)))
    assert np.isfinite(last["loss"])
    assert last["loss"] > 1e3
    assert last["iteration"] == reg.n_iter_


def test_what_is_stopped_is_the_shorter_run():
    reg = regressor(on_divergence="stop", **TOO_MUCH)
    with pytest.warns(ConvergenceWarning):
        reg.fit(X, y)
    shorter = regressor(lr=1.0, max_iter=reg.n_iter_).fit(X, y)
    np.testing.assert_array_equal(reg.params_, shorter.params_)
    with pytest.raises(DivergenceError):
        regressor(lr=1.0, max_iter=reg.n_iter_ + 1).fit(X, y)


def test_skorchs_history_holds_finished_blocks():
    reg = regressor(on_divergence="stop", record_every=2, **TOO_MUCH)
    with pytest.warns(ConvergenceWarning):
        reg.fit(X, y, X_val=X, y_val=y)
    blocks = reg.net_.history[:, ("iteration", "train_loss", "valid_loss")]
    assert [block[0] for block in blocks] == list(range(2, reg.n_iter_ + 1, 2))


def test_the_iteration_counts_from_the_start_of_the_warmup():
    reg = regressor(warmup={"max_iter": 20, "lr": 0.02}, **TOO_MUCH)
    with pytest.raises(DivergenceError, match=r"at iteration 2\d with lr=1;"):
        reg.fit(X, y)


def test_a_warmup_that_diverges_names_its_lr():
    reg = regressor(warmup={"max_iter": 20, "lr": 1.0})
    with pytest.raises(DivergenceError, match=r"at iteration \d+ with lr=1;"):
        reg.fit(X, y)


def test_a_warmup_that_diverges_in_its_last_step():
    with pytest.raises(DivergenceError) as first:
        regressor(warmup={"max_iter": 20, "lr": 1.0}).fit(X, y)
    iteration = int(str(first.value).split("iteration ")[1].split()[0])
    with pytest.raises(DivergenceError, match=f"at iteration {iteration} with lr=1;"):
        regressor(warmup={"max_iter": iteration, "lr": 1.0}).fit(X, y)


def test_a_warmup_that_stops(tmp_path):
    settings = {"warmup": {"max_iter": 20, "lr": 1.0}, "on_divergence": "stop"}
    for _ in range(2):  # the second comes from memory
        reg = regressor(memory=str(tmp_path), **settings)
        with pytest.warns(ConvergenceWarning, match="with lr=1;"):
            reg.fit(X, y)
        assert reg.n_iter_ == 0
        assert np.isfinite(reg.history_["loss"]).all()
        assert reg.history_["iteration"].iloc[-1] < 20
        assert np.isfinite(reg.predict(X)).all()


@pytest.mark.parametrize("on_divergence", ["raise", "stop"])
@pytest.mark.parametrize("n_warmup", [0, 5])
@pytest.mark.parametrize("method", ["sgd", "gld_leading"])
def test_a_start_without_a_finite_loss(on_divergence, n_warmup, method):
    reg = regressor(
        params_init=np.full(49, 1e30),
        warmup={"max_iter": n_warmup},
        on_divergence=on_divergence,
        method=method,
    )
    with pytest.raises(
        DivergenceError, match=r"(inf|nan) at iteration 0, before .* params_init"
    ):
        reg.fit(X, y)


def test_an_error_of_the_law_is_not_a_divergence():
    class Broken(METHODS["gd"]):
        def refresh(self, risk, theta, rng, previous=None):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        regressor(method=Broken()).fit(X, y)


def test_an_earlier_fit_survives_a_failed_one():
    reg = regressor().fit(X, y)
    before = reg.predict(X)
    with pytest.raises(DivergenceError):
        reg.set_params(**TOO_MUCH).fit(X, y)
    np.testing.assert_array_equal(reg.predict(X), before)


@pytest.fixture
def ctrl_c():
    """A function that does what Ctrl-C does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def interrupt():
    raise KeyboardInterrupt


def at_third_call(action):
    """Return a metric that acts when it is called for the third time."""
    calls = []

    def metric(risk, theta):
        calls.append(None)
        if len(calls) == 3:
            action()
        return len(calls)

    return metric


def assert_interrupted_at(clf, X, n_iter):
    assert clf.n_iter_ == n_iter
    assert clf.predict(X).shape == (len(X),)
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))
    assert not {"descent_", "recorder_"} & vars(clf.net_).keys()


@pytest.mark.parametrize("kind", ["signal", "raise"])
def test_ctrl_c_in_a_metric_stores_and_raises_on(kind, ctrl_c):
    X, y = blobs()
    action = ctrl_c if kind == "signal" else interrupt
    clf = classifier(metrics={"m": at_third_call(action)}, max_iter=100)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert_interrupted_at(clf, X, 20)
    assert clf.history_["iteration"].tolist() == [0, 10]
    np.testing.assert_array_equal(
        clf.params_, classifier(max_iter=20).fit(X, y).params_
    )
    # It goes on from there.
    clf.set_params(metrics=None, warm_start=True, max_iter=10).fit(X, y)
    assert clf.history_["iteration"].tolist() == [0, 10, 20, 30]
    np.testing.assert_array_equal(clf.params_, classifier().fit(X, y).params_)


def test_ctrl_c_in_a_callback_raises_on(ctrl_c):
    class Pressed(Callback):
        def on_epoch_end(self, net, **kwargs):
            ctrl_c()

    X, y = blobs()
    clf = classifier(callbacks=[Pressed])
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert_interrupted_at(clf, X, 10)


def test_a_callback_that_raises_it_only_stops():
    class Enough(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    X, y = blobs()
    assert_interrupted_at(classifier(callbacks=[Enough]).fit(X, y), X, 10)


def test_ctrl_c_within_a_block(ctrl_c):
    class Pressed(METHODS["gd"]):
        def noisy_gradient(self, risk, theta, state, rng):
            if self.presses.pop():
                ctrl_c()
            return risk.value_and_gradient(theta)

    X, y = blobs()
    Pressed.presses = [True, *[False] * 14]
    clf = classifier(method=Pressed())
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert_interrupted_at(clf, X, 14)
    assert clf.history_["iteration"].tolist() == [0, 10]
    Pressed.presses = [False] * 1000
    clf.set_params(warm_start=True, max_iter=6).fit(X, y)
    assert clf.history_["iteration"].tolist() == [0, 10, 14, 20]
    whole = classifier(method="gd", max_iter=20).fit(X, y)
    np.testing.assert_array_equal(clf.params_, whole.params_)


def test_ctrl_c_in_the_first_record(ctrl_c):
    X, y = blobs()
    clf = classifier(metrics={"m": lambda risk, theta: ctrl_c()})
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    with pytest.raises(NotFittedError):  # nothing has been recorded
        clf.predict(X)
    clf.set_params(metrics=None, warm_start=True).fit(X, y)
    np.testing.assert_array_equal(clf.params_, classifier().fit(X, y).params_)


def test_ctrl_c_in_the_warmup(ctrl_c):
    class Pressed(METHODS["gd"]):
        def noisy_gradient(self, risk, theta, state, rng):
            if self.presses.pop():
                ctrl_c()
            return risk.value_and_gradient(theta)

    X, y = blobs()
    Pressed.presses = [True, *[False] * 14]
    clf = classifier(warmup={"method": Pressed(), "max_iter": 50})
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    assert_interrupted_at(clf, X, 0)
    assert clf.history_[["iteration", "phase"]].to_numpy().tolist() == [[14, "warmup"]]
    reached = classifier(method="gd", max_iter=14).fit(X, y)
    np.testing.assert_array_equal(clf.params_, reached.params_)


@pytest.mark.parametrize("kind", ["signal", "raise"])
def test_ctrl_c_ends_a_grid(kind, ctrl_c):
    X, y = blobs()
    calls = []

    def metric(risk, theta):
        calls.append(None)
        (ctrl_c if kind == "signal" else interrupt)()

    clf = classifier(metrics={"m": metric})
    with pytest.raises(KeyboardInterrupt):
        GridSearchCV(clf, {"lr": [0.1, 0.2]}, cv=3).fit(X, y)
    assert len(calls) == 1


def test_no_warning_on_the_ordinary_way():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor(on_divergence="stop").fit(X, y)


def slide(outputs, targets):
    """Σ sin(t) - 2t + bᵢt, convex until t = 0."""
    t = outputs[:, 0]
    return t.sin() - 2 * t + targets * t


def test_where_noise_has_no_size_it_has_no_norm():
    reg = NoisyDiffusionRegressor(
        module=torch.nn.Linear,
        module_params={"in_features": 1, "out_features": 1, "bias": False},
        loss=slide,
        method="gld_dynamic",
        method_params={"match": "curvature", "match_every": 4},
        params_init=np.array([-1.0]),
        lr=0.1,
        max_iter=50,
        record_every=2,
        on_divergence="stop",
        dtype="float64",
        random_state=0,
    )
    with pytest.warns(ConvergenceWarning, match="No noise at iteration"):
        reg.fit(np.ones((2, 1)), np.array([1e-3, -1e-3]))
    history = reg.history_
    # Without noise t is above 0 at the iterate 9; curvature is measured at 0, 4, 8, 12.
    assert history["iteration"].tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert reg.n_iter_ == 12
    assert history["noise_norm"].isna().tolist() == [False] * 6 + [True]
    assert np.isfinite(history["loss"]).all()
