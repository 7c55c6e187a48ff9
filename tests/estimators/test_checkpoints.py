"""A fit that is interrupted goes on, and ends where it would have ended."""

import errno
import os

import numpy as np
import pytest
import torch
from joblib import Memory
from pandas.testing import assert_frame_equal
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Initializer,
    LRScheduler,
    TrainEndCheckpoint,
)
from torch.utils import data

from flatmin._runs import folder_lock
from flatmin._runs.folder_lock import locked_folder
from flatmin.dynamics import DivergenceError, NoisyDescent
from flatmin.linalg import DiagonalOperator, FunctionOperator
from flatmin.noise import METHODS, SGD, GaussianLaw, GLDHessian

from ..interrupts import killed_after
from ._problems import blobs, classifier, plane, regressor

X, y = blobs()
X_val, y_val = blobs(seed=1)

WARMUP = {"max_iter": 12, "lr": 0.05}
SETTINGS = {"warmup": WARMUP, "max_iter": 25, "record_every": 10}
MOMENTUM = {"optimizer_params": {"momentum": 0.9}}


def silent(text):
    """Do nothing: what callbacks say goes here."""


def fit(folder, kind=classifier, data=(X, y), validation=False, every=4, **params):
    settings = SETTINGS | params
    if folder is not None:
        settings["checkpoint_dir"] = {"path": folder, "every": every}
    test = {"X_val": X_val, "y_val": y_val} if validation else {}
    return kind(**settings).fit(*data, **test)


def interrupt(monkeypatch, n_writes, folder, **params):
    """Fit until there have been so many checkpoints."""
    with killed_after(monkeypatch, n_writes):
        fit(folder, **params)


def assert_alike(one, two):
    np.testing.assert_array_equal(one.params_, two.params_)
    assert_frame_equal(one.history_, two.history_, check_exact=True)
    assert one.n_iter_ == two.n_iter_
    assert one.diverged_ == two.diverged_
    skorch = [
        [{k: v for k, v in row.items() if k != "dur"} for row in model.net_.history]
        for model in (one, two)
    ]
    assert skorch[0] == skorch[1]
    for name, state in one._generator_states.items():
        assert torch.equal(state, two._generator_states[name])


@pytest.fixture
def goes_on(monkeypatch, tmp_path):
    """A function that interrupts a fit, several times, and compares its end."""

    def check(*n_writes, **params):
        whole = fit(None, **params)
        folder = tmp_path / "run"
        for n in n_writes:
            interrupt(monkeypatch, n, folder, **params)
        assert_alike(fit(folder, **params), whole)
        assert_alike(fit(folder, **params), whole)  # it has ended, and is known
        return whole

    return check


# Checkpoints are at 0, 4, 8 and 10 of the warm-up, and 0, 4, 8, ... of the noise.
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on(goes_on, method):
    settings = {} if method == "svag" else MOMENTUM  # it takes plain steps only
    goes_on(3, 2, 4, method=method, **settings)


@pytest.mark.parametrize("n_writes", range(1, 11))
def test_it_goes_on_from_every_checkpoint(goes_on, n_writes):
    goes_on(n_writes, method="gld_leading", warmup=WARMUP | {"method": "sgd"})


@pytest.mark.parametrize(
    "params",
    [
        {
            "method": SGD(sampling="epoch"),
            "warmup": WARMUP | {"method": SGD(sampling="epoch")},
        },
        {"method": "gld_hessian", "gradient_batch_size": 20, "refresh_every": 7},
        {"method": "gld_random_subspace", "n_components": 3, "dtype": "float64"},
        {"method": "gld_full", "optimizer": "adam", "lr": 0.01},
        {"method": "gld_full", "optimizer": torch.optim.Adamax, "lr": 0.01},
        {"warmup": {"max_iter": 12, "optimizer": "rmsprop", "lr": 0.01}},
        {"every": None},
        {"every": 1},
        {"record_every": 7, "every": 9},
        {"validation": True, "metrics": {"norm": lambda risk, theta: theta.norm()}},
        {"kind": regressor, "data": plane(), "method": "gld_ggn"},
    ],
    ids=lambda params: " ".join(params),
)
def test_other_settings_go_on(goes_on, params):
    goes_on(2, 3, **params)


def test_the_whole_spectrum_goes_on(goes_on):
    """Its state holds the Hessian of the batch on which it was refreshed."""
    goes_on(
        2,
        method=GLDHessian(n_components="full", refresh_every=3),
        gradient_batch_size=30,
        module_params={"hidden_layer_sizes": 130},
        warmup=None,
        max_iter=6,
        every=2,
    )


def test_without_a_warmup(goes_on):
    goes_on(1, 1, 2, warmup=None)


def test_through_a_memory(goes_on, tmp_path):
    memory = Memory(tmp_path / "memory", verbose=0)
    goes_on(2, 3, warmup=WARMUP | {"method": "sgd"}, memory=memory)


def test_a_finished_fit_is_given_back(monkeypatch, tmp_path):
    whole = fit(tmp_path)
    files = sorted(tmp_path.iterdir())
    monkeypatch.setattr(NoisyDescent, "run", None)
    found = fit(tmp_path)
    assert_alike(found, whole)
    assert sorted(tmp_path.iterdir()) == files
    np.testing.assert_array_equal(found.predict(X), whole.predict(X))
    assert float(found.risk_.value(found.risk_.params())) == pytest.approx(
        whole.history_["loss"].iloc[-1]
    )


def test_a_warm_start_goes_on_in_another_folder(tmp_path):
    plain = fit(None, warm_start=True).fit(X, y)
    model = fit(tmp_path / "a", warm_start=True)
    with pytest.raises(ValueError, match=r"differs from .*the start"):
        model.fit(X, y)
    model.set_params(checkpoint_dir=tmp_path / "b").fit(X, y)
    assert_alike(model, plain)


# --------------------------------------------------------------------- callbacks
class Keeps(Callback):
    """Keeps a list, and lets the learning rate depend on it."""

    def __init__(self):
        self.losses = []

    def on_epoch_end(self, net, **kwargs):
        self.losses.append(net.history[-1, "train_loss"])
        net.optimizer_.param_groups[0]["lr"] = 0.1 / len(self.losses)


class OwnWords(Callback):
    """Says itself what it remembers."""

    def initialize(self):
        self.rng_ = np.random.default_rng(0)
        return self

    def on_epoch_end(self, net, **kwargs):
        net.optimizer_.param_groups[0]["lr"] = self.rng_.uniform(0, 0.1)

    def state_dict(self):
        state = self.rng_.bit_generator.state["state"]
        return {name: str(value) for name, value in state.items()}

    def load_state_dict(self, state):
        whole = self.rng_.bit_generator.state
        whole["state"] = {name: int(value) for name, value in state.items()}
        self.rng_.bit_generator.state = whole


class Sets(Callback):
    """Sets θ when training begins, and in the midst of it."""

    def __init__(self, at, assign=False):
        self.at, self.assign = at, assign

    def _act(self, net):
        rng = torch.Generator().manual_seed(len(net.history))
        state = net.module_.state_dict()
        new = {n: torch.randn(v.shape, generator=rng) / 2 for n, v in state.items()}
        net.module_.load_state_dict(new, assign=self.assign)

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self._act(net)

    def on_epoch_begin(self, net, **kwargs):
        if self.at == "begin" and len(net.history) == 3:
            self._act(net)

    def on_epoch_end(self, net, **kwargs):
        if self.at == "end" and len(net.history) == 2:
            self._act(net)


CALLBACKS = {
    "sets at begin": lambda: Sets("begin"),
    "sets at end": lambda: Sets("end"),
    "assigns at begin": lambda: Sets("begin", assign=True),
    "assigns at end": lambda: Sets("end", assign=True),
    "step": lambda: LRScheduler("StepLR", step_size=2, gamma=0.5),
    "steps": lambda: LRScheduler("MultiStepLR", milestones=[1, 3]),
    "lambda": lambda: LRScheduler("LambdaLR", lr_lambda=lambda epoch: 0.8**epoch),
    "restart": lambda: LRScheduler("WarmRestartLR", base_period=3, max_lr=0.1),
    "plateau": lambda: LRScheduler(
        "ReduceLROnPlateau", monitor="train_loss", patience=0
    ),
    "stopping": lambda: EarlyStopping(patience=2, sink=silent, load_best=True),
    "scoring": lambda: EpochScoring("accuracy", lower_is_better=False),
    "list": Keeps,
    "own words": OwnWords,
    "initializer": lambda: Initializer("*bias", fn=torch.nn.init.zeros_),
    "train end": lambda: TrainEndCheckpoint(dirname="unused", sink=silent),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_go_on(monkeypatch, tmp_path, name):
    make = CALLBACKS[name]
    monkeypatch.chdir(tmp_path)
    params = {"validation": True, "max_iter": 55, "lr": 0.3}
    whole = fit(None, callbacks=[make()], **params)
    for n in (6, 3, 5):
        interrupt(monkeypatch, n, "run", callbacks=[make()], **params)
    found = fit("run", callbacks=[make()], **params)
    assert_alike(found, whole)
    # What has ended is known again, with what callbacks remember of it.
    again = fit("run", callbacks=[make()], **params)
    assert_alike(again, whole)
    last, expected = (model.net_.callbacks_[3][1] for model in (again, whole))
    for name, value in vars(expected).items():
        if isinstance(value, int | float | str | list):
            assert getattr(last, name) == value


def test_an_early_stop_is_not_gone_past(monkeypatch, tmp_path):
    def params():
        stop = EarlyStopping("train_loss", patience=2, sink=silent)
        stop.set_params(threshold=10.0, threshold_mode="abs")
        return {"callbacks": [stop], "max_iter": 500}

    whole = fit(None, **params())
    interrupt(monkeypatch, 9, tmp_path, **params())
    found = fit(tmp_path, **params())
    assert found.n_iter_ == 30
    assert_alike(found, whole)


def test_the_best_of_skorchs_checkpoint(monkeypatch, tmp_path):
    noise = np.random.default_rng(0).integers(0, 3, size=len(y))

    def params(name):
        best = Checkpoint(load_best=True, dirname=tmp_path / name, sink=silent)
        return {"callbacks": [best], "data": (X, noise), "lr": 0.5, "max_iter": 60}

    whole = fit(None, validation=True, **params("a"))
    folder = tmp_path / "run"
    interrupt(monkeypatch, 11, folder, validation=True, **params("b"))
    assert_alike(fit(folder, validation=True, **params("b")), whole)


class Remembers(Callback):
    """Remembers something that no file can hold without code."""

    def initialize(self):
        self.thing_ = np.random.default_rng(0)
        return self


def test_a_callback_that_cannot_be_stored_is_refused(monkeypatch, tmp_path):
    with pytest.raises(TypeError, match=r"thing_ of Remembers must .* state_dict"):
        fit(tmp_path, callbacks=[Remembers()], warmup=None)
    monkeypatch.setattr(NoisyDescent, "run", None)
    with pytest.raises(TypeError, match="thing_ of Remembers"):
        fit(tmp_path, callbacks=[Remembers()])


# -------------------------------------------------------------------------- laws
class Drifts(GaussianLaw):
    """Has an operator of its own for a state."""

    name = "drifts"

    def refresh(self, risk, theta, rng, previous=None):
        operator = FunctionOperator(lambda v: v, risk.n_params)
        operator.sample = lambda rng: torch.randn(risk.n_params, generator=rng)
        return operator


class Stored(Drifts):
    """The same, and it says how to store it."""

    name = "stored"

    def store_state(self, state):
        return None

    def restore_state(self, stored, risk):
        return self.refresh(risk, None, None)


class Smooth(GaussianLaw):
    """Averages over its refreshes, which is why it needs what was before."""

    name = "smooth"
    refresh_every = 3

    def refresh(self, risk, theta, rng, previous=None):
        before = 0 if previous is None else previous.diagonal
        return DiagonalOperator(0.9 * before + 0.1 * theta.square())


@pytest.mark.parametrize("n_iter", [0, 12])
def test_a_law_that_cannot_be_stored_is_refused(monkeypatch, tmp_path, n_iter):
    monkeypatch.setattr(NoisyDescent, "run", None)
    with pytest.raises(TypeError, match=r"state of Drifts: .*store_state"):
        fit(tmp_path, method=Drifts(), warmup={"max_iter": n_iter})


@pytest.mark.parametrize("law", [Stored, Smooth])
def test_laws_of_ones_own_go_on(goes_on, law):
    goes_on(2, 3, method=law(), lr=0.01)


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 0.2}, "lr"),
        ({"max_iter": 26}, "max_iter"),
        ({"method": "gd"}, "method"),
        ({"batch_size": 7}, "batch_size"),
        ({"random_state": 1}, "random_state"),
        ({"metrics": {"norm": lambda risk, theta: theta.norm()}}, "metrics"),
        ({"callbacks": [LRScheduler("StepLR", step_size=2)]}, "callbacks"),
        ({"module_params": {"hidden_layer_sizes": 9}}, "module"),
        ({"data": (X + 1, y)}, "X and y"),
        ({"validation": True}, "X_val and y_val"),
        ({"kind": regressor}, "kind of estimator"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_another_run_is_refused(monkeypatch, tmp_path, change, named):
    interrupt(monkeypatch, 3, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"differs from this one in .*{named}"):
        fit(tmp_path, **change)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_data_set_is_known_by_all_its_examples(monkeypatch, tmp_path):
    def streamed(X):
        return data.TensorDataset(torch.as_tensor(X), torch.as_tensor(y)), None

    last_differs = X.copy()
    last_differs[-1, 0] += 1
    interrupt(monkeypatch, 3, tmp_path, data=streamed(X))
    with pytest.raises(ValueError, match="differs from this one in X and y"):
        fit(tmp_path, data=streamed(last_differs))
    assert_alike(fit(tmp_path, data=streamed(X)), fit(None, data=streamed(X)))


def test_what_a_run_does_not_depend_on(monkeypatch, tmp_path):
    interrupt(monkeypatch, 3, tmp_path)
    found = fit(tmp_path, every=7, store_data=False)
    assert_alike(found, fit(None))


def test_another_machine_is_named(monkeypatch, tmp_path):
    interrupt(monkeypatch, 3, tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with pytest.warns(UserWarning, match=r"'threads': 1.*'threads': 64.*last bits"):
        fit(tmp_path)
    monkeypatch.undo()
    fit(tmp_path)  # nothing of what has ended can differ


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_a_run_that_cannot_be_repeated_is_refused(tmp_path, random_state):
    with pytest.raises(ValueError, match=r"needs an integer random_state.* Got"):
        fit(tmp_path, random_state=random_state)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"every": 3}, TypeError, r"checkpoint_dir\['path'\] must name a folder"),
        ({"path": "a", "evry": 3}, ValueError, "did you mean 'every'"),
        ({"path": "a", "every": 0}, ValueError, r"\['every'\] must be .* Got 0"),
    ],
)
def test_settings_of_the_folder_are_checked(settings, error, match):
    with pytest.raises(error, match=match):
        classifier(checkpoint_dir=settings).fit(X, y)


def test_a_folder_that_cannot_be_written_is_named_at_once(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(NoisyDescent, "run", None)
    with pytest.raises(OSError, match="file"):
        fit(tmp_path / "file" / "run")


def test_a_folder_in_use_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0)

    def is_held(risk, theta):
        with pytest.raises(BlockingIOError, match="in use"), locked_folder(tmp_path):
            pass
        return 1

    fit(tmp_path, metrics={"held": is_held})
    monkeypatch.setattr(NoisyDescent, "run", None)
    with (
        locked_folder(tmp_path),
        pytest.raises(BlockingIOError, match="in use by"),
    ):
        fit(tmp_path, metrics={"held": is_held})


# ------------------------------------------------------------------------- files
def test_of_a_damaged_checkpoint_the_one_before_is_used(monkeypatch, tmp_path):
    interrupt(monkeypatch, 6, tmp_path)
    last = max(tmp_path.iterdir())
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"checksum is wrong.*the one before"):
        found = fit(tmp_path)
    assert_alike(found, fit(None))


def test_a_full_disk_loses_nothing(monkeypatch, tmp_path):
    whole = fit(None)
    interrupt(monkeypatch, 4, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match=r"No space left .* whole, and the train"):
            assert_alike(fit(tmp_path), whole)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert_alike(fit(tmp_path), whole)


def test_a_full_disk_at_the_beginning_is_an_error(monkeypatch, tmp_path):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / ".lock"]


# -------------------------------------------------------------------- divergence
@pytest.mark.filterwarnings("ignore:The loss became")
def test_a_divergence_stops_where_it_would_have(goes_on):
    found = goes_on(
        4, 3, lr=50.0, on_divergence="stop", method="gld_const", max_iter=99
    )
    assert found.diverged_ is not None


def test_a_divergence_is_raised_again(tmp_path):
    for _ in range(2):
        with pytest.raises(DivergenceError):
            fit(tmp_path, lr=1e8, **MOMENTUM)
