"""What travels between processes is storable values, and no process stays behind."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from skorch.callbacks import Callback

from flatmin import compare_dynamics
from flatmin.comparison import _workers
from flatmin.comparison._checkpoints import UnitFolder
from flatmin.comparison._plan import Plan, RiskSource
from flatmin.comparison._tasks import StartTask, UnitTask
from flatmin.comparison._unit import run_start, run_unit

from ._problems import classifier, digits, norm

X, y, X_test, y_test = digits()
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available(), reason="needs a CUDA device"
            ),
        ],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_no_tensor_crosses_a_border(device):
    estimator = classifier(method="gld_hessian", n_components=2, device=device)
    plan = Plan(
        RiskSource((X, y, X_test, y_test), estimator),
        metrics={"norm": norm},
        end_metrics={"end": norm},
        quench=10,
        quench_loss=0.5,
        quench_loss_iter=100,
        keep_params=True,
    )
    nowhere = UnitFolder(None, None, {})
    start = run_start(StartTask(0, plan, None, nowhere))
    task = UnitTask("gld_hessian", estimator, start, plan, nowhere)
    unit, _ = run_unit(task)
    assert unit.record["status"] == "done", unit.record
    assert unit.params.keys() == {"start", "noise", "quench", "quench_loss"}
    for value in (start, unit):
        pickled = pickle.dumps(value)
        assert b"torch" not in pickled
        assert pickle.loads(pickled).__dict__.keys() == value.__dict__.keys()
    # The task itself: a name of the device, and no data on it.
    assert b"torch.storage" not in pickle.dumps(task)


def test_a_result_can_be_pickled():
    found = compare_dynamics(["gd"], X, y, estimator=classifier(), n_seeds=[0])
    again = pickle.loads(pickle.dumps(found))
    assert_frame_equal(again.table, found.table)
    assert again.protocol == found.protocol


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_workers_on_one_gpu():
    one, two = (
        compare_dynamics(
            ["gd", "sgd", "gld_full"],
            X,
            y,
            estimator=classifier(device="cuda"),
            n_seeds=[0, 1],
            quench=10,
            n_jobs=n_jobs,
        )
        for n_jobs in (1, 2)
    )
    assert len(two.failures) == 0
    assert two.provenance[0]["machine"]["device"] == torch.cuda.get_device_name()
    for column in ("loss", "distance", "noise_norm"):
        np.testing.assert_allclose(one.table[column], two.table[column], rtol=1e-3)


# By the file alone, since importing PyTorch takes seconds.
BEAT = """
import runpy, sys, time
work = runpy.run_path(sys.argv[1])["work"]

def beat(path):
    for _ in range(1000):
        with open(path, "a") as file:
            file.write(".")
        time.sleep(0.02)

for _ in work(beat, sys.argv[2:], 2):
    pass
"""


def test_workers_end_with_a_caller_that_is_killed(tmp_path):
    files = [tmp_path / name for name in "ab"]
    command = [sys.executable, "-c", BEAT, _workers.__file__]
    with subprocess.Popen([*command, *map(str, files)]) as caller:
        wait_until(lambda: all(path.exists() for path in files))
        caller.kill()

    def stands_still():
        before = [path.stat().st_size for path in files]
        time.sleep(0.3)
        return before == [path.stat().st_size for path in files]

    wait_until(stands_still)
    # Not because there was no more to do.
    assert all(path.stat().st_size < 1000 for path in files)


# The caller is killed while its workers read their first tasks.
LATE = """
import pathlib, runpy, sys, time
work = runpy.run_path(sys.argv[1])["work"]

def load(path):
    pathlib.Path(path).touch()
    time.sleep(2)
    return path

class Late:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return load, (self.path,)

def write(path):
    pathlib.Path(path + ".begun").touch()

for _ in work(write, [Late(path) for path in sys.argv[2:]], 2):
    pass
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_an_orphan_begins_nothing(tmp_path):
    files = [tmp_path / name for name in "ab"]
    command = [sys.executable, "-c", LATE, _workers.__file__, *map(str, files)]
    with subprocess.Popen(command) as caller:
        wait_until(lambda: all(path.exists() for path in files))
        caller.kill()
    time.sleep(4)
    assert sorted(tmp_path.iterdir()) == files


def wait_until(condition):
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Ended(BaseException):
    """What the end of a process is inside a test."""


@pytest.mark.parametrize("sentinel", [True, False])
def test_a_worker_whose_caller_is_gone_begins_nothing(monkeypatch, sentinel):
    """The caller was killed before this first task was begun."""

    class Parent:
        pid = 12345

        def is_alive(self):
            if not sentinel:
                raise ValueError("Invalid file object: None")
            return alive

    def end(status):
        raise Ended

    alive = True
    monkeypatch.setattr(_workers.os, "_exit", end)
    monkeypatch.setattr(_workers.os, "getppid", lambda: Parent.pid if alive else 1)
    monkeypatch.setattr(_workers.multiprocessing, "parent_process", Parent)
    monkeypatch.setattr(_workers.threading, "Thread", lambda **settings: Parent())
    monkeypatch.setattr(Parent, "start", lambda self: None, raising=False)
    assert _workers._call(Parent.pid, abs, 7, -3) == (7, 3)
    alive = False
    with pytest.raises(Ended):
        _workers._call(Parent.pid, abs, 7, -3)
    # One that was not made by the caller does not know when it ends.
    assert _workers._call(0, abs, 7, -3) == (7, 3)


# ------------------------------------------------------ workers and errors that die
def die(task):
    """Die as by the machine's out-of-memory killer, always or once."""
    i, killers, once = task
    if i in killers and not (once and (once / str(i)).exists()):
        if once:
            (once / str(i)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return i


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("always", [True, False])
def test_a_dead_worker_costs_its_own_task(tmp_path, always):
    tasks = [(i, {1, 5}, None if always else tmp_path) for i in range(9)]
    found = list(_workers.work(die, tasks, 2, lambda task, error: (task[0], error)))
    lost = dict(item for item in found if isinstance(item, tuple))
    assert sorted(lost) == ([1, 5] if always else [])
    assert all("SIGKILL" in str(error) for error in lost.values())
    assert sorted(i for i in found if isinstance(i, int)) == sorted(
        {*range(9)} - {*lost}
    )


class Killer(Callback):
    """A unit that wants more memory than there is."""

    def on_epoch_end(self, net, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)


class MuteError(RuntimeError):
    def __str__(self):
        raise ZeroDivisionError


class RootedError(ValueError):
    """Cannot be made again by its arguments, and so not be unpickled."""

    def __init__(self, one, two):
        super().__init__(one)


class Raiser(Callback):
    def __init__(self, error):
        self.error = error

    def on_epoch_end(self, net, **kwargs):
        raise self.error()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_the_rest_survives(tmp_path):
    methods = {
        "gd": {},
        "killer": {"method": "gd", "callbacks": [Killer()]},
        "mute": {"method": "gd", "callbacks": [Raiser(MuteError)]},
        "rooted": {"method": "gd", "callbacks": [Raiser(lambda: RootedError("no", 2))]},
        "sgd": {},
    }
    given = {"estimator": classifier(), "n_seeds": [0]}
    seen = []
    found = compare_dynamics(
        methods, X, y, **given, n_jobs=2, on_unit=seen.append, checkpoint_dir=tmp_path
    )
    failures = found.failures.set_index("method")
    assert failures["error"].to_dict() == {
        "killer": "TerminatedWorkerError",
        "mute": "MuteError",
        "rooted": "RootedError",
    }
    assert failures["phase"].unique().tolist() == ["noise"]
    assert failures.loc["mute", "message"].endswith("raised ZeroDivisionError")
    assert failures.loc["rooted", "message"] == "no"
    assert len(seen) == 5
    found.to_json(tmp_path / "found.json")
    alone = compare_dynamics(["gd", "sgd"], X, y, **given)
    rows = found.table[found.table["method"].isin(["gd", "sgd"])]
    assert_frame_equal(rows.reset_index(drop=True), alone.table, check_exact=True)


def rooted(risk, theta):
    raise RootedError("no", 2)


@pytest.mark.parametrize(
    ("n_jobs", "kind", "match"),
    [(1, RootedError, "no"), (2, ValueError, "RootedError: no")],
)
def test_what_no_method_could_use_is_raised(n_jobs, kind, match):
    with pytest.raises(kind, match=f"^{match}$"):
        compare_dynamics(
            ["gd"],
            X,
            y,
            estimator=classifier(),
            n_seeds=[0, 1],
            metrics={"rooted": rooted},
            n_jobs=n_jobs,
        )
