"""Whether a data file is there, and can be read without waiting for anyone."""

import stat
from pathlib import Path


def is_there(path: Path) -> bool:
    """Tell whether a file exists.

    Parameters
    ----------
    path : Path
        Where the file would be.

    Returns
    -------
    there : bool
        False if there is nothing.

    Raises
    ------
    OSError
        If there is something else than a regular file, for example a named pipe: to
        open that would wait for another program, perhaps forever.
    """
    # Not Path.is_file, to which a pipe is a file that is missing.
    if not path.exists():
        return False
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(
            f"{path} must be a regular file. Got a {_KINDS.get(stat.S_IFMT(mode))}; "
            "move it away, or replace it by the data file."
        )
    return True


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
