"""A folder that one run at a time writes into.

The lock is advisory and the kernel's: it goes with the process that holds it, however
that ends, so a run that was killed can be resumed at once. Where there is no ``flock``,
as on Windows, nothing is locked.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked_folder"]

_PATIENCE = 5.0  # seconds that a killed process may take to let go

_held: set[int] = set()


@contextmanager
def locked_folder(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Hold a folder while the context lasts.

    Parameters
    ----------
    path : path-like or None
        Made if it is not there; the lock is on the file ``.lock`` in it, which stays.
        None holds nothing.

    Yields
    ------
    None

    Raises
    ------
    BlockingIOError
        If another run holds it for 5 s more, be it in this process.
    """
    if path is None:
        yield
        return
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    handle = None
    if fcntl is not None:
        # What cannot be written is for the run to say.
        with suppress(OSError):
            handle = _open(folder / ".lock")
            _held.add(handle)
    try:
        if handle is not None:
            _lock(handle, folder)
        yield
    finally:
        if handle in _held:  # not in a fork
            _held.remove(handle)
            os.close(handle)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # another user's; to lock it is allowed
        return os.open(path, os.O_RDONLY)


def _lock(handle: int, folder: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
            holder = os.read(handle, 1000).decode(errors="replace")
            raise BlockingIOError(
                f"{folder} is in use by {holder or 'another process'}: two runs in one "
                "folder would overwrite each other's checkpoints. Wait until that one "
                "has ended, end it, or name another checkpoint_dir."
            ) from None
        except OSError:
            return  # a file system without locks
    with suppress(OSError):  # of a full disk
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())


def _forget() -> None:
    """Let go in a fork, which would hold the lock when its parent is gone."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_forget)
