"""A folder has one holder at a time, and loses it with the process."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from flatmin._utils import folder_lock
from flatmin._utils.folder_lock import locked_folder

pytestmark = pytest.mark.skipif(folder_lock.fcntl is None, reason="needs fcntl")

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


def test_a_second_process_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0.1)
    with held_elsewhere(tmp_path / "run") as holder:
        message = rf"{tmp_path}/run is in use by process {holder.pid} on .*or name"
        with (
            pytest.raises(BlockingIOError, match=message),
            locked_folder(tmp_path / "run"),
        ):
            pass
        with locked_folder(tmp_path / "other"):
            pass


@pytest.mark.parametrize("fork", [False, True])
def test_a_kill_lets_go(tmp_path, fork):
    """Also if something that it had forked lives on."""
    with held_elsewhere(tmp_path, fork) as holder:
        holder.kill()
        with locked_folder(tmp_path):
            assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_one_process_may_not_hold_it_twice(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0)
    with locked_folder(tmp_path):
        with pytest.raises(BlockingIOError, match="in use"), locked_folder(tmp_path):
            pass
        with pytest.raises(BlockingIOError, match="in use"), locked_folder(tmp_path):
            pass
    with pytest.raises(KeyError), locked_folder(tmp_path):
        raise KeyError
    with locked_folder(tmp_path), locked_folder(tmp_path / "below"):
        pass
    with locked_folder(None), locked_folder(None):
        pass
    assert not folder_lock._held


@pytest.mark.parametrize("missing", ["fcntl", "locks", "room"])
def test_where_nothing_can_be_locked_nothing_is(monkeypatch, tmp_path, missing):
    def fail(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    if missing == "fcntl":
        monkeypatch.setattr(folder_lock, "fcntl", None)
    elif missing == "locks":
        monkeypatch.setattr(folder_lock.fcntl, "flock", fail)
    else:
        monkeypatch.setattr(os, "open", fail)
    with locked_folder(tmp_path), locked_folder(tmp_path):
        pass


def test_a_full_disk_does_not_matter(monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_lock, "_PATIENCE", 0)
    monkeypatch.setattr(os, "write", full)
    with (
        locked_folder(tmp_path),
        pytest.raises(BlockingIOError, match="in use by another process"),
        locked_folder(tmp_path),
    ):
        pass


def test_the_lock_of_another_user_is_seen(monkeypatch, tmp_path):
    def not_mine(path, flags, mode=0o777):
        if flags & os.O_RDWR:
            raise PermissionError
        return opened(path, flags, mode)

    opened = os.open
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0.1)
    with held_elsewhere(tmp_path):
        monkeypatch.setattr(os, "open", not_mine)
        with pytest.raises(BlockingIOError, match="in use"), locked_folder(tmp_path):
            pass
