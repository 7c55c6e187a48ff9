"""Which code ran, and what was called: the revision and the command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flatmin._utils.versions import list_versions

__all__ = ["describe_command", "find_revision"]

_SECONDS = 30  # for git, on a slow disk
# Between the words of an argument that may each be a path.
_BETWEEN = re.compile(r"([=,:;\s\"'()\[\]{}]+)")


def find_revision(folder: Path | None = None) -> str:
    """Return the commit of the checkout that flatmin is imported from.

    Parameters
    ----------
    folder : pathlib.Path, default=None
        Of the package; None is flatmin's own.

    Returns
    -------
    str
        40 digits, and "+changes" where a tracked file differs from the commit, or a
        Python file is neither tracked nor ignored. ``"flatmin"`` and the version of the
        package where it is in no checkout, or git does not tell.
    """
    folder = Path(__file__).parents[1] if folder is None else folder
    version = f"flatmin {list_versions()['flatmin']}"
    # An installed package may lie inside the checkout of something else.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return version
    commit = _git(folder, "rev-parse", "HEAD")
    # -z: names as they are, without quotes.
    status = _git(folder, "status", "--porcelain", "-z", "--untracked-files=all")
    if commit is None or status is None:
        return version
    changed = any(
        not line.startswith("??") or line.endswith(".py")
        for line in status.split("\0")
        if line
    )
    return commit.strip() + ("+changes" if changed else "")


def describe_command(argv: Sequence[str] | None = None) -> str:
    """Return the command of this process, as it can be given again from its folder.

    Parameters
    ----------
    argv : sequence of str, default=None
        Program and arguments; None is this process's.

    Returns
    -------
    str
        Paths inside the working directory are relative to it; of others the last part
        is left, and of ``python -c CODE`` not the code.
    """
    program, *arguments = (sys.orig_argv if argv is None else argv) or ["python"]
    script = _first_of_script(arguments)
    words = [_last_part(program), *map(_without_folders, arguments[:script])]
    if arguments[script : script + 1] == ["-c"]:
        words += ["-c", "..."]
        script += 1
    else:
        words += map(_shown, arguments[script : script + 1])
    words += map(_without_folders, arguments[script + 1 :])
    return shlex.join(words)


def _first_of_script(arguments: Sequence[str]) -> int:
    """Return the place of what Python runs: a file, ``-m`` or ``-c``."""
    i = 0
    while i < len(arguments):
        word = arguments[i]
        if word in ("-c", "-m") or not word.startswith("-"):
            return i
        i += 2 if word in ("-W", "-X", "--check-hash-based-pycs") else 1
    return i


def _without_folders(argument: str) -> str:
    """Return an argument without the folders outside of the working directory."""
    # A path may have spaces in it. It is taken whole if nothing stands beside it but an
    # option and an =.
    option, equals, value = argument.rpartition("=")
    if _is_path(value):
        return f"{option}{equals}{_shown(value)}"
    return "".join(
        _shown(word) if _is_path(word) else word for word in _BETWEEN.split(argument)
    )


def _is_path(word: str) -> bool:
    """Say whether it is a path, and no fraction or name with a slash."""
    first, *rest = re.split(r"[/\\]", word, maxsplit=1)
    if not rest:
        return False
    is_drive = re.fullmatch(r"[A-Za-z]:", first) is not None
    return first in ("", ".", "..", "~") or is_drive or Path(first).is_dir()


def _shown(path: str) -> str:
    """Return a path from the working directory, or the last part of one elsewhere."""
    if path.startswith("~") or (os.sep == "/" and "\\" in path):
        return _last_part(path)
    try:
        return Path(os.path.abspath(path)).relative_to(Path.cwd()).as_posix()
    except (OSError, ValueError):
        return _last_part(path)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "."


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says about a folder, or None."""
    # A caller inside a hook has variables that name another repository.
    own = {name: v for name, v in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            env=own,
            capture_output=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if found.returncode != 0:
        return None
    return found.stdout.decode("utf-8", errors="replace")
