"""A folder has one holder at a time, and loses it with the process."""

import errno
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from flatmin._runs import folder_lock
from flatmin._runs.folder_lock import locked_folder, silent_holder

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# By the file alone, since importing PyTorch takes seconds.
HOLD = """
import os, runpy, sys, time
locked_folder = runpy.run_path(sys.argv[1])["locked_folder"]
with locked_folder(sys.argv[2]):
    child = os.fork() if sys.argv[3] == "fork" else None
    if child != 0:
        print(child, flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(folder, fork=False):
    """Give a process that holds the folder, with a living fork of it if asked."""
    arguments = [folder_lock.__file__, str(folder), "fork" if fork else "alone"]
    command = [sys.executable, "-c", HOLD, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        child = None
        try:
            child = holder.stdout.readline().strip()
            yield holder
        finally:
            if fork:
                os.kill(int(child), signal.SIGKILL)
            holder.kill()


def assert_refused(folder, match="in use by"):
    with pytest.raises(BlockingIOError, match=match), locked_folder(folder, 0):
        pass


def test_a_second_process_is_refused(tmp_path):
    with held_elsewhere(tmp_path / "run") as holder:
        assert_refused(
            tmp_path / "run",
            "run is in use by another process"
            if os.name == "nt"
            else rf"{tmp_path}/run is in use by process {holder.pid} on .*or name",
        )
        with locked_folder(tmp_path / "other"):
            pass


@pytest.mark.parametrize("fork", [False, pytest.param(True, marks=needs_fork)])
def test_a_kill_lets_go(tmp_path, fork):
    """Also if something that it had forked lives on."""
    with held_elsewhere(tmp_path, fork) as holder:
        assert_refused(tmp_path)
        holder.kill()
        with locked_folder(tmp_path, 30):
            assert_refused(tmp_path)


def test_one_process_may_not_hold_it_twice(tmp_path):
    with locked_folder(tmp_path):
        assert_refused(tmp_path)
        assert_refused(tmp_path)
        with locked_folder(tmp_path / "below", 0):
            pass
    with pytest.raises(KeyError), locked_folder(tmp_path, 0):
        raise KeyError
    with locked_folder(tmp_path, 0):
        pass
    with locked_folder(None, 0), locked_folder(None, 0):
        pass


def test_it_waits_a_while(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0.2)
    with (
        locked_folder(tmp_path),
        pytest.raises(BlockingIOError, match="in use"),
        locked_folder(tmp_path),
    ):
        pass


@pytest.mark.skipif(os.name == "nt", reason="needs fcntl")
@pytest.mark.parametrize(
    ("code", "name"),
    [
        (errno.ENOLCK, "fcntl.flock"),
        (errno.ENOSYS, "fcntl.flock"),
        (errno.EROFS, "os.open"),
        (errno.EACCES, "os.open"),
    ],
)
def test_what_cannot_be_locked_is_refused(monkeypatch, tmp_path, code, name):
    """Two runs would overwrite each other's files."""

    def fail(*arguments, **settings):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(name, fail)
    match = rf"{tmp_path} is not \({os.strerror(code)}\). Name another checkpoint_dir"
    with pytest.raises(OSError, match=match) as caught, locked_folder(tmp_path):
        pass
    assert caught.value.errno == code
    assert not isinstance(caught.value, BlockingIOError)


@pytest.mark.skipif(os.name == "nt", reason="the system locks what was written")
def test_a_full_disk_does_not_matter(monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with locked_folder(tmp_path):
        assert_refused(tmp_path, "in use by another process")


# ---------------------------------------------------------------- other machines
def test_a_name_is_there_while_it_is_held(tmp_path):
    with locked_folder(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.parametrize(
    ("name", "age", "free"),
    [
        ("process 7 on elsewhere", 0, False),
        ("process 7 on elsewhere", 100, False),
        ("process 7 on elsewhere", 130, True),
        (f"process 7 on {platform.node()}", 0, True),
        ("", 0, True),
    ],
)
def test_a_lock_that_only_its_own_machine_sees(tmp_path, name, age, free):
    """It is not taken from a machine that lives, and is from one that died."""
    file = tmp_path / ".lock"
    file.write_text(name)
    then = time.time() - age
    os.utime(file, (then, then))
    if free:
        with locked_folder(tmp_path, 0):
            assert file.read_text() == f"process {os.getpid()} on {platform.node()}"
    else:
        assert_refused(tmp_path, "in use by process 7 on elsewhere")
        assert_refused(tmp_path, "in use by process 7 on elsewhere")
        assert file.stat().st_mtime == pytest.approx(then, abs=1e-3)


def test_it_is_taken_as_soon_as_a_machine_is_silent(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_lock, "_SILENCE", 0.5)
    (tmp_path / ".lock").write_text("process 7 on elsewhere")
    begun = time.monotonic()
    with locked_folder(tmp_path, 30):
        assert 0.4 < time.monotonic() - begun < 20


def test_a_sign_of_life_is_given_while_it_is_held(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_lock, "_BEAT", 0.01)
    file = tmp_path / ".lock"
    with locked_folder(tmp_path):
        os.utime(file, (0, 0))
        end = time.monotonic() + 30
        while file.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0
    os.utime(file, (0, 0))
    time.sleep(0.1)
    assert file.stat().st_mtime == 0


def test_who_is_silent_is_named(tmp_path):
    file = tmp_path / ".lock"
    assert silent_holder(tmp_path / "nowhere", 0) is None
    for name, age, found in [
        ("process 7 on elsewhere", 700, "process 7 on elsewhere"),
        ("process 7 on elsewhere", 500, None),
        (f"process 7 on {platform.node()}", 700, None),
    ]:
        file.write_text(name)
        os.utime(file, (time.time() - age,) * 2)
        assert silent_holder(tmp_path, 600) == found
