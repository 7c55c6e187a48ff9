"""Files that are opened for reading without waiting for anyone."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["is_there", "open_regular"]


def is_there(path: Path) -> bool:
    """Tell whether a file exists.

    Parameters
    ----------
    path : pathlib.Path
        Where the file would be.

    Returns
    -------
    bool
        False if there is nothing.

    Raises
    ------
    OSError
        If there is something else than a regular file, for example a named pipe or a
        link to itself.
    """
    # Path.is_file is False for a pipe, and Path.exists for a link to itself, as if
    # nothing were there. Here both raise.
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    _check(path, mode)
    return True


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    To open a named pipe would wait for another program, perhaps forever, and to open a
    device may do something.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    binary file

    Raises
    ------
    OSError
        If it cannot be opened, or is no regular file.
    """
    _check(path, path.stat().st_mode)
    # What stands there may be another thing by now: open it without waiting, and look
    # again. Neither flag is known on every system.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, os.O_RDONLY | flags)
    try:
        _check(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(
            f"{path} must be a regular file. Got a {_KINDS.get(stat.S_IFMT(mode))}; "
            "move it away, or replace it by the file."
        )


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
