"""A comparison is interrupted, goes on, and gives the same table."""

import errno
import os
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread

import pytest
from filelock import FileLock
from joblib import parallel_config
from pandas.testing import assert_frame_equal

from flatmin import compare_dynamics
from flatmin._runs import folder_lock
from flatmin._runs.folder_lock import locked_folder
from flatmin.comparison import ComparisonResult, _schedule, _unit
from flatmin.dynamics import NoisyDescent

from ..interrupts import killed_after
from . import _shared
from ._problems import classifier, digits, norm

X, y, X_test, y_test = digits()


def compare(folder, methods=("gd", "sgd"), **settings):
    given = {"estimator": classifier(), "n_seeds": [3, 1], "quench": 10}
    given |= {"end_metrics": {"end": norm}, "checkpoint_dir": folder}
    return compare_dynamics(methods, X, y, **given | settings)


def assert_alike(one, two):
    assert_frame_equal(one.table, two.table, check_exact=True)
    assert one.protocol == two.protocol
    records = [result.units.drop(columns="seconds") for result in (one, two)]
    assert_frame_equal(*records)


def interrupt(monkeypatch, folder, n_writes, **settings):
    """Compare until the fits have written so many checkpoints."""
    with killed_after(monkeypatch, n_writes):
        compare(folder, **settings)


@pytest.fixture(scope="module")
def whole():
    """What is to come out."""
    return compare(None)


def test_it_goes_on(monkeypatch, tmp_path, whole):
    # Into the first warm-up, the second, a noise, a quench.
    for n_writes in (2, 6, 5, 6):
        interrupt(monkeypatch, tmp_path, n_writes)
    assert_alike(compare(tmp_path), whole)


def test_what_has_ended_is_found(monkeypatch, tmp_path, whole):
    compare(tmp_path)
    monkeypatch.setattr(NoisyDescent, "run", None)
    seen = []
    found = compare(tmp_path, on_unit=seen.append, n_jobs=2)
    assert_alike(found, whole)
    assert len(seen) == 4
    # Fits that have ended leave nothing but what came out.
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {".lock", "begin.flatmin", "end.flatmin"}


def test_other_methods_and_seeds_may_follow(tmp_path):
    compare(tmp_path, ["gd"], n_seeds=[3])
    found = compare(tmp_path, ["sgd", "gd"], n_seeds=[1, 3])
    assert_alike(found, compare(None, ["sgd", "gd"], n_seeds=[1, 3]))


def test_it_says_where_each_part_was_run(monkeypatch, tmp_path):
    places = [{"machine": {"device": "one"}}, {"machine": {"device": "two"}}]
    for place, methods in zip(places, (["gd"], ["gd", "sgd"]), strict=True):
        monkeypatch.setattr(_unit, "place", lambda device, at=place: at)
        seen = []
        mixed = pytest.warns(UserWarning, match="Seed 3 was run on .*one and on .*two")
        with mixed if place is places[1] else nullcontext():
            found = compare(tmp_path, methods, n_seeds=[3], on_unit=seen.append)
    machines = [{"machine": origin["machine"]} for origin in found.provenance]
    assert machines == places
    assert [result.provenance for result in seen] == [[p] for p in found.provenance]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quench": 11}, "quench"),
        ({"estimator": classifier(lr=0.2)}, "lr"),
        ({"end_metrics": {"end": lambda risk, theta: 0.0}}, "end_metrics"),
        ({"X_test": X_test, "y_test": y_test}, "data"),
        ({"methods": {"gd": {"noise_scale": 2.0}}}, "noise_scale"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("n_writes", [11, None])
def test_another_comparison_is_refused(monkeypatch, tmp_path, n_writes, change, named):
    """Also where no unit has ended."""
    if n_writes is None:
        compare(tmp_path, ["gd"], n_seeds=[3])
    else:
        interrupt(monkeypatch, tmp_path, n_writes, methods=["gd"], n_seeds=[3])
    monkeypatch.setattr(NoisyDescent, "run", None)
    with pytest.raises(ValueError, match=rf"differs from this one in .*{named}"):
        compare(tmp_path, **{"methods": ["gd"], "n_seeds": [3]} | change)


def test_what_is_damaged_is_run_again(tmp_path, whole):
    compare(tmp_path)
    unit = next(tmp_path.glob("sgd-*-3")) / "end.flatmin"
    unit.write_bytes(unit.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"checksum is wrong.*is run again"):
        assert_alike(compare(tmp_path), whole)


@pytest.mark.parametrize("other", ["sgd-*-1", "gd-*-3"])
def test_what_came_out_of_another_unit_is_refused(monkeypatch, tmp_path, other):
    compare(tmp_path)
    unit, found = (next(tmp_path.glob(name)) for name in ("sgd-*-3", other))
    (unit / "end.flatmin").write_bytes((found / "end.flatmin").read_bytes())
    monkeypatch.setattr(NoisyDescent, "run", None)
    with pytest.raises(ValueError, match=rf"came out of the unit.*Got.*{found.name}"):
        compare(tmp_path)


def test_a_divergence_is_kept(monkeypatch, tmp_path):
    settings = {"methods": {"gd": {}, "sgd": {"lr": 1e30}}, "n_seeds": [3]}
    first = compare(tmp_path, **settings)
    assert first.failures["error"].tolist() == ["DivergenceError"]
    monkeypatch.setattr(NoisyDescent, "run", None)
    assert_alike(compare(tmp_path, **settings), first)


@contextmanager
def held_by_another(path):
    """Hold a folder in a thread until the event is set."""
    begun, let_go = Event(), Event()

    def hold():
        with locked_folder(path):
            begun.set()
            let_go.wait(100)

    thread = Thread(target=hold)
    thread.start()
    try:
        assert begun.wait(100)
        yield let_go
    finally:
        let_go.set()
        thread.join()


@pytest.mark.parametrize(
    ("folder", "last"),
    [("warm-up-3", [("gd", 3), ("sgd", 3)]), ("sgd-*-3", [("sgd", 3)])],
)
@pytest.mark.parametrize("backend", ["sequential", "threading"])
def test_what_another_call_is_at_comes_last(tmp_path, whole, folder, last, backend):
    seen = []

    def note(result):
        seen.append((*result.units.loc[0, ["method", "seed"]],))
        if len(seen) == 4 - len(last):
            let_go.set()

    compare(tmp_path)
    for path in tmp_path.glob("*/*.flatmin"):
        path.unlink()
    (held,) = tmp_path.glob(folder)
    with held_by_another(held) as let_go, parallel_config(backend):
        found = compare(tmp_path, on_unit=note, n_jobs=1 if backend[0] == "s" else 2)
    assert_alike(found, whole)
    assert sorted(seen[-len(last) :]) == last
    assert len(set(seen)) == 4


def test_what_another_call_has_ended_is_taken(monkeypatch, tmp_path, whole):
    compare(tmp_path)
    (unit,) = tmp_path.glob("sgd-*-3")
    end = unit / "end.flatmin"
    end.rename(unit / "later")

    def pause(seconds):
        (unit / "later").rename(end)
        held.release()

    held = FileLock(unit / ".lock")
    monkeypatch.setattr(_schedule.time, "sleep", pause)
    monkeypatch.setattr(NoisyDescent, "run", None)
    with held:
        assert_alike(compare(tmp_path), whole)


def test_another_one_that_came_first_is_not_overwritten(tmp_path):
    """Its folders were not there when this call looked."""
    other = {"methods": ["gd"], "n_seeds": [3], "quench": 11}

    def data(seed):
        if seed == 0:
            compare(tmp_path, **other)
        return X, y

    with pytest.raises(ValueError, match=r"warm-up-3 .*differs from this one in"):
        compare_dynamics(
            ["gd"],
            data,
            estimator=classifier(),
            n_seeds=[0, 3],
            checkpoint_dir=tmp_path,
        )
    assert len(compare(tmp_path, **other).failures) == 0


def start_two(folder, files):
    """Start two processes that share a folder; each writes its result into a file."""
    return [
        subprocess.Popen(
            [sys.executable, _shared.__file__, str(folder), str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for file in files
    ]


NAMES = ("gd", "gld_hessian", "warm-up")
ALL_RUNS = [
    f"{name} {seed}"
    for name in ("gd", "gld_hessian", "warm-up")
    for seed in range(1, 5)
]


@pytest.mark.slow
def test_two_processes_share_a_folder(tmp_path):
    """They come to the table of one, and each warm-up and unit is run once."""
    files = [tmp_path / f"{i}.json" for i in range(2)]
    calls = start_two(tmp_path / "folder", files)
    runs = [call.communicate()[0].splitlines() for call in calls]
    assert [call.returncode for call in calls] == [0, 0]
    for file in files:
        assert_alike(ComparisonResult.from_json(file), _shared.compare(None))
    run = sorted(line.partition(" ")[2] for lines in runs for line in lines)
    assert run == ALL_RUNS
    assert all(len(lines) > 0 for lines in runs)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_what_a_killed_process_was_at_is_taken_up(tmp_path):
    folder, files = tmp_path / "folder", [tmp_path / f"{i}.json" for i in range(2)]
    calls = start_two(folder, files)
    pids = {call.pid: call for call in calls}
    killed = None
    while killed is None:
        assert all(call.poll() is None for call in calls), "nobody was killed"
        for checkpoint in folder.glob("gld*/noise/checkpoint-*"):
            signed = (checkpoint.parents[1] / ".lock").read_text().split()
            if signed and killed is None:
                killed = pids[int(signed[1])]
                killed.kill()
    runs = [call.communicate()[0].splitlines() for call in calls]
    (other,) = (call for call in calls if call is not killed)
    assert other.returncode == 0
    found = ComparisonResult.from_json(files[calls.index(other)])
    assert_alike(found, _shared.compare(None))
    run = [line.partition(" ")[2] for lines in runs for line in lines]
    # What had ended is not run again, and what had begun is.
    assert sorted(set(run)) == ALL_RUNS
    assert len(run) == len(ALL_RUNS) + 1


def test_it_does_not_wait_for_a_machine_that_is_gone(monkeypatch, tmp_path):
    """Its file server has not noticed, and keeps the lock."""
    monkeypatch.setattr(folder_lock, "_BEAT", 1000)
    monkeypatch.setattr(_schedule, "_PAUSE", 0.01)
    compare(tmp_path)
    (unit,) = tmp_path.glob("sgd-*-3")
    (unit / "end.flatmin").unlink()
    with held_by_another(unit):
        (unit / ".lock").write_text("process 7 on elsewhere")
        os.utime(unit / ".lock", (time.time() - 700,) * 2)
        match = (
            r"1 units are left.*sgd-\w+-3 by process 7 on elsewhere.*delete the file"
        )
        with pytest.raises(OSError, match=match):
            compare(tmp_path)
    assert_alike(compare(tmp_path), compare(None))


@pytest.mark.skipif(os.name == "nt", reason="needs fcntl")
def test_a_file_system_without_locks_is_refused(monkeypatch, tmp_path):
    compare(tmp_path, ["gd"])

    def fail(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    monkeypatch.setattr(NoisyDescent, "run", None)
    compare(tmp_path, ["gd"])  # is only read
    with pytest.raises(OSError, match=rf"{tmp_path} is not \(No locks available\)"):
        compare(tmp_path)


def test_an_estimator_with_a_folder_is_refused(tmp_path):
    estimator = classifier(checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="pass checkpoint_dir to compare_dynamics"):
        compare(None, estimator=estimator)
    with pytest.raises(ValueError, match="checkpoint_every needs a checkpoint_dir"):
        compare(None, checkpoint_every=3)


@pytest.fixture
def killed_comparisons(tmp_path):
    """A function that kills comparisons in each of some phases, and compares ends."""

    def check(backend, phases, n_rounds):
        script = Path(__file__).with_name("_killed.py")
        arguments = [str(tmp_path), backend, phases, str(n_rounds)]
        found = subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert found.returncode == 0, found.stderr
        whole = ComparisonResult.from_json(tmp_path / "whole.json")
        for i in range(n_rounds):
            resumed = ComparisonResult.from_json(tmp_path / f"resumed-{i}.json")
            assert len(resumed.failures) == 0
            assert_alike(resumed, whole)
        return int(found.stdout)

    return check


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@needs_fork
@pytest.mark.parametrize(
    ("backend", "phases"),
    [
        ("threading", "fit quench"),
        pytest.param("loky", "noise", marks=pytest.mark.slow),
    ],
)
def test_a_killed_comparison_gives_the_same_table(killed_comparisons, backend, phases):
    assert killed_comparisons(backend, phases, 1) >= 1


@needs_fork
@pytest.mark.slow
def test_kills_at_any_time(killed_comparisons):
    # Some come when all is done.
    assert killed_comparisons("loky", "anytime anytime", 10) >= 10


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "n_rounds"), [("sequential", 7), ("threading", 7), ("loky", 3)]
)
def test_many_kills(killed_comparisons, backend, n_rounds):
    # All three phases are seen unless a unit is through one between two looks.
    assert killed_comparisons(backend, "fit noise quench", n_rounds) >= 2 * n_rounds
