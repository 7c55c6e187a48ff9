"""A checkpoint that somebody has altered, with a right checksum, sets state at most."""

import os
import warnings

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LRScheduler

from flatmin._runs.checkpoint_files import read_file, write_file

from ..interrupts import killed_after
from ._problems import blobs, classifier

X, y = blobs()
SETTINGS = {"max_iter": 25, "record_every": 10, "warmup": {"max_iter": 6}}


def silent(text):
    """Do nothing: what callbacks say goes here."""


class Mode(Callback):
    """Remembers a text, and changes it if asked to."""

    def __init__(self, patience=3, changes=()):
        self.patience, self.changes = patience, changes

    def initialize(self):
        self.mode_ = "up"
        self.count_ = 0
        return self

    def on_epoch_end(self, net, **kwargs):
        self.count_ += 1
        if "mode" in self.changes:
            self.mode_ = "down"
        if "patience" in self.changes:
            self.patience -= 1
        if "history" in self.changes:
            net.history.record("note", "../elsewhere")


def callbacks(folder, **params):
    name = "{last_epoch[train_batch_count]}"
    best = Checkpoint(
        monitor=None, f_params=f"{name}.pt", dirname=folder / "own", sink=silent
    )
    stop = EarlyStopping("train_loss", patience=50, sink=silent)
    step = LRScheduler("StepLR", step_size=2, gamma=0.5)
    return [best, stop, step, Mode(**params)]


def fit(folder, **params):
    kept = {"path": folder / "run", "every": 4}
    return classifier(**SETTINGS | params, checkpoint_dir=kept).fit(X, y)


def interrupted(monkeypatch, folder, n_writes=8, **params):
    with killed_after(monkeypatch, n_writes):
        fit(folder, **params)


def alter(folder, change):
    for path in (folder / "run").glob("*.flatmin"):
        content = read_file(path)
        change(content)
        write_file(path, content)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def values(content, index):
    named = list(content["callbacks"].values())
    return named[index]["values"]


def into_best(**new):
    return lambda content: values(content, BEST).update(new)


BEST, STOP, STEP, MODE = 3, 4, 5, 6


def set_step(name, value):
    def change(content):
        step = list(content["callbacks"].values())[STEP]
        step["parts"]["lr_scheduler_"]["state"][name] = value

    return change


def set_in(*path, value):
    def change(content):
        *rest, last = path
        for key in rest:
            content = content[key]
        content[last] = value

    return change


GROUP = ("descent", "optimizer", "param_groups", 0)

ATTACKS = {
    "dirname": into_best(dirname="elsewhere"),
    "f_params": into_best(f_params="../../elsewhere.pt"),
    "f_pickle": into_best(f_pickle="elsewhere.pkl"),
    "fn_prefix": into_best(fn_prefix="/tmp/"),
    "event_name": into_best(event_name="x"),
    "f_evil_": into_best(f_evil_="elsewhere.pt"),
    "f_history_": into_best(f_history_="elsewhere.json"),
    "a method": into_best(save_model=1),
    "__class__": into_best(__class__=1),
    "__dict__": into_best(__dict__={}),
    "patience": lambda content: values(content, STOP).update(patience=1),
    "user's patience": lambda content: values(content, MODE).update(patience=1),
    "text": lambda content: values(content, MODE).update(mode_="elsewhere"),
    "gamma": set_step("gamma", 2.0),
    "a schedule's optimizer": set_step("optimizer", 1),
    "history": lambda content: [
        row.update(train_batch_count="../../elsewhere") for row in content["history"]
    ],
    "maximize": set_in(*GROUP, "maximize", value=True),
    "lr is text": set_in(*GROUP, "lr", value="1"),
    "lr is nan": set_in(*GROUP, "lr", value=float("nan")),
    "theta": set_in("descent", "theta", value=torch.zeros(1)),
    "iteration": set_in("descent", "iteration", value=-3),
    "rng": set_in("descent", "rng", value=torch.zeros(5056, dtype=torch.uint8)),
    "a short rng": set_in("descent", "rng", value=torch.zeros(3, dtype=torch.uint8)),
    "rows": set_in("rows", value=[1]),
    "phase": set_in("phase", value="other"),
    "no descent": lambda content: content.pop("descent"),
    "no callbacks": lambda content: content.pop("callbacks"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused_and_nothing_is_written(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    interrupted(monkeypatch, tmp_path, callbacks=callbacks(tmp_path))
    alter(tmp_path, ATTACKS[name])
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"run is whole and does not fit this run"):
        fit(tmp_path, callbacks=callbacks(tmp_path))
    assert files(tmp_path) == before


def test_without_callbacks_no_number_of_the_optimizer_changes(monkeypatch, tmp_path):
    interrupted(monkeypatch, tmp_path)
    alter(tmp_path, set_in(*GROUP, "lr", value=0.2))
    with pytest.raises(ValueError, match="another lr of the optimizer"):
        fit(tmp_path)


def test_a_batch_of_other_examples_is_refused(monkeypatch, tmp_path):
    params = {"gradient_batch_size": 20}
    interrupted(monkeypatch, tmp_path, **params)
    alter(tmp_path, set_in("descent", "batch", value=torch.full((20,), 60)))
    with pytest.raises(ValueError, match="another batch than"):
        fit(tmp_path, **params)


def test_state_comes_back(monkeypatch, tmp_path):
    """The same, unaltered: to its end, as if there had been no interrupt."""
    whole = classifier(**SETTINGS, callbacks=callbacks(tmp_path)).fit(X, y)
    interrupted(monkeypatch, tmp_path, callbacks=callbacks(tmp_path))
    found = fit(tmp_path, callbacks=callbacks(tmp_path))
    np.testing.assert_array_equal(found.params_, whole.params_)
    last = dict(found.net_.callbacks_)
    assert last["Mode"].count_ == 3
    assert last["Mode"].mode_ == "up"
    again = fit(tmp_path, callbacks=callbacks(tmp_path))
    assert dict(again.net_.callbacks_)["Mode"].count_ == 3


@pytest.mark.parametrize("change", ["mode", "patience", "history"])
def test_what_could_not_be_brought_back_is_said(tmp_path, change):
    """The run ends as without checkpoints, and what it can go on from stays."""

    def params():
        return {"callbacks": callbacks(tmp_path, changes=(change,))}

    whole = classifier(**SETTINGS, **params()).fit(X, y)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = fit(tmp_path, **params())
    named = "note" if change == "history" else change
    assert any(f"{named}" in str(w.message) for w in said)
    assert all("No checkpoint could be written" in str(w.message) for w in said)
    np.testing.assert_array_equal(found.params_, whole.params_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(fit(tmp_path, **params()).params_, whole.params_)


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_nothing_is_written_through_a_link(monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / "run").mkdir()
    for i in range(20):
        (tmp_path / "run" / f"checkpoint-{i:08d}.flatmin.part").symlink_to(elsewhere)
    fit(tmp_path)
    assert elsewhere.read_text() == "kept"
