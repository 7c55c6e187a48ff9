"""A folder that one run at a time writes into.

The lock is the operating system's: it goes with the process that holds it, however that
ends, so what was killed can be resumed at once.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["locked_folder"]

_PATIENCE = 5.0  # seconds that a killed process may take to let go


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
    # A soft lock, a mere file, would outlive a kill.
    lock = FileLock(folder / ".lock", fallback_to_soft=False, on_acquired=_sign)
    try:
        lock.acquire(timeout=_PATIENCE if patience is None else patience)
    except Timeout:
        raise BlockingIOError(
            f"{folder} is in use by {_holder(folder / '.lock')}: two runs in one "
            "folder would overwrite each other's checkpoints. Wait until that one has "
            "ended, end it, or name another checkpoint_dir."
        ) from None
    except OSError as error:
        raise OSError(
            error.errno,
            f"A folder of checkpoints must be one that can be written and locked, and "
            f"{folder} is not ({error.strerror}). Name another checkpoint_dir",
            str(folder / ".lock"),
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sign(handle: int) -> None:
    with suppress(OSError):  # a full disk: the lock holds without a name in it
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())


def _holder(path: Path) -> str:
    """Return who signed; Windows lets nobody read what is locked."""
    with suppress(OSError):
        return path.read_text(errors="replace")[:1000] or "another process"
    return "another process"
