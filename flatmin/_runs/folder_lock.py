"""A folder that one run at a time writes into.

The lock is the operating system's: it goes with the process that holds it, however that
ends, so what was killed can be resumed at once.

Between machines it is as good as the locks of the file system, and two kinds are not
good enough. So the holder gives a sign of life as well: its name is in the file while
it holds it, and it touches the file every ten seconds. Where locks are known to one
machine alone, a lock that another one has signed, and touched in the last two minutes,
is not free. Where the server keeps the lock of a machine that died,
:func:`silent_holder` tells.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from filelock import FileLock, Timeout

__all__ = ["is_held", "locked_folder", "silent_holder"]

_PATIENCE = 5.0  # seconds that a killed process may take to let go
_BEAT = 10.0  # seconds between two signs of life
# Seconds without one after which another machine is taken for dead. Clients of network
# file systems may see times that are a minute old.
_SILENCE = 120.0
_PAUSE = 0.2  # seconds between two looks at another machine's sign of life


@contextmanager
def locked_folder(
    path: str | os.PathLike[str] | None, patience: float | None = None
) -> Iterator[None]:
    """Hold a folder while the context lasts.

    Parameters
    ----------
    path : path-like or None
        Made if it is not there; the lock is on the file ``.lock`` in it, which stays.
        None holds nothing.
    patience : float, default=None
        Seconds to wait for another run; None is 5.

    Yields
    ------
    None

    Raises
    ------
    BlockingIOError
        If another run still holds it then, be it in this process.
    OSError
        If it cannot be written, or its file system has no locks.
    """
    if path is None:
        yield
        return
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    with ExitStack() as stack:
        try:
            acquired = _acquired(file, _PATIENCE if patience is None else patience)
            handle = stack.enter_context(acquired)
        except Timeout:
            raise BlockingIOError(
                f"{folder} is in use by {_holder(file) or 'another process'}: two runs "
                "in one folder would overwrite each other's checkpoints. Wait until "
                "that one has ended, end it, or name another checkpoint_dir."
            ) from None
        except OSError as error:
            raise OSError(
                error.errno,
                "A folder of checkpoints must be one that can be written and locked, "
                f"and {folder} is not ({error.strerror}). Name another checkpoint_dir",
                str(file),
            ) from error
        stack.enter_context(_signed(file, handle))
        yield


def is_held(path: str | os.PathLike[str]) -> bool:
    """Say whether another run, or thread, holds a folder that is there.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    bool
    """
    try:
        with _acquired(Path(path) / ".lock", 0):
            return False
    except Timeout:
        return True


def silent_holder(path: str | os.PathLike[str], seconds: float) -> str | None:
    """Return who holds a folder from another machine without a sign of life.

    Parameters
    ----------
    path : path-like
        A folder that is held.
    seconds : float
        For so long.

    Returns
    -------
    str or None
        None if there was a sign, or this machine holds it and knows.
    """
    file = Path(path) / ".lock"
    holder = _holder(file)
    try:
        if _is_foreign(holder) and _age(file, file.stat().st_mtime) > seconds:
            return holder
    except OSError:  # it has let go, and somebody has removed the folder
        pass
    return None


@contextmanager
def _acquired(file: Path, patience: float) -> Iterator[int]:
    """Hold the lock, and give its file; Timeout is raised if it is not free by then."""
    handles: list[int] = []
    # A soft lock, a mere file, would outlive a kill.
    lock = FileLock(file, fallback_to_soft=False, on_acquired=handles.append)
    end = time.monotonic() + patience
    while True:
        with lock.acquire(timeout=max(0.0, end - time.monotonic())):
            if not _is_of_another_machine(file, handles[-1]):
                yield handles[-1]
                return
        if time.monotonic() >= end:
            raise Timeout(str(file))
        time.sleep(_PAUSE)


@contextmanager
def _signed(file: Path, handle: int) -> Iterator[None]:
    """Have a name in the file, and signs of life of it, while the context lasts."""
    pid, stop = os.getpid(), Event()
    _write(handle, f"process {pid} on {platform.node()}")
    heart = Thread(target=_beat, args=(file, stop), daemon=True)
    heart.start()
    try:
        yield
    finally:
        if os.getpid() == pid:  # a fork has neither the lock nor this thread
            stop.set()
            heart.join()
            _write(handle, "")


def _beat(file: Path, stop: Event) -> None:
    while not stop.wait(_BEAT):
        with suppress(OSError):
            os.utime(file)


def _write(handle: int, name: str) -> None:
    with suppress(OSError):  # a full disk: the lock holds without a name in it
        os.truncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, name.encode())


def _is_of_another_machine(file: Path, handle: int) -> bool:
    """Say whether a machine that is alive holds what this one's lock says is free."""
    os.lseek(handle, 0, os.SEEK_SET)
    name = os.read(handle, 1000).decode(errors="replace")
    return _is_foreign(name) and _age(file, os.fstat(handle).st_mtime) < _SILENCE


def _is_foreign(name: str) -> bool:
    return bool(name) and not name.endswith(f" on {platform.node()}")


def _age(file: Path, then: float) -> float:
    """Return the seconds since a time, both of the file system's own clock."""
    os.utime(file.parent)
    return file.parent.stat().st_mtime - then


def _holder(path: Path) -> str:
    """Return who signed, or ""; Windows lets nobody read what is locked."""
    with suppress(OSError):
        return path.read_text(errors="replace")[:1000]
    return ""
