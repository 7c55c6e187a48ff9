"""Checkpoints as files: there as a whole or not at all, and read without running code.

A file begins with one line: the format, and the size and SHA-256 of the rest. The rest
is as :mod:`flatmin._runs.storable_bytes` writes it. The checksum finds accidents. It is
no protection: who writes into the folder can write another checksum too.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from flatmin._runs.storable_bytes import from_bytes, to_bytes
from flatmin._utils.regular_files import open_regular

__all__ = [
    "CheckpointFolder",
    "DamagedFileError",
    "check_checkpoint_every",
    "read_file",
    "replace_file",
    "write_file",
]

_KIND = b"flatmin.checkpoint/"
_VERSION = b"2"  # 1 held a pickle


class DamagedFileError(ValueError):
    """A file is cut off, altered, or something else."""


def write_file(path: Path, content: Any) -> None:
    """Write storable values so that the file is whole or as it was before.

    Parameters
    ----------
    path : pathlib.Path
        In a folder that exists.
    content : object
        What :func:`flatmin._runs.storable.as_storable` takes.

    Raises
    ------
    OSError
        If the disk is full, or the like.
    TypeError
        If it is something else.
    """
    payload = to_bytes(content, "the content")
    digest = hashlib.sha256(payload).hexdigest().encode()

    def write(file: BinaryIO) -> None:
        size = str(len(payload)).encode()
        file.write(b"%s%s %s %s\n" % (_KIND, _VERSION, size, digest))
        file.write(payload)

    replace_file(path, write)
    _sync_folder(path.parent)


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file that is whole, or as it was before.

    Parameters
    ----------
    path : pathlib.Path
        In a folder that exists.
    write : callable
        Takes the file, open for writing.

    Raises
    ------
    OSError
        If the disk is full, or the like.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        # A new one: what has its name may be a link to elsewhere, or a pipe.
        part.unlink(missing_ok=True)
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # What write() raises, as of a full disk, names no file.
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def read_file(path: Path) -> Any:
    """Read what :func:`write_file` wrote; tensors come on the CPU.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    object

    Raises
    ------
    DamagedFileError
        If it is cut off, altered, or no checkpoint.
    FileNotFoundError
        If there is none.
    ValueError
        If it is of another version of the format.
    """
    try:
        with open_regular(path) as whole:
            words = whole.readline(200).rstrip(b"\n").split(b" ")
            left = os.fstat(whole.fileno()).st_size - whole.tell()
            # Only of the size that it tells: something else may be of any.
            whole_size = words[1:2] == [str(left).encode()]
            payload = whole.read() if whole_size else b""
    except FileNotFoundError:
        raise
    except (OSError, MemoryError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error
    if not words[0].startswith(_KIND):
        raise DamagedFileError(f"{path} is cut off, or no checkpoint of flatmin.")
    version = words[0].removeprefix(_KIND)
    if version != _VERSION:
        raise ValueError(
            f"{path} must be a checkpoint of format {_VERSION.decode()}. Got format "
            f"{version.decode(errors='replace')!r}; read it with the version of "
            "flatmin that wrote it, or begin in another folder."
        )
    digest = hashlib.sha256(payload).hexdigest().encode()
    if not whole_size or words[2:] != [digest]:
        raise DamagedFileError(f"{path} is cut off or altered: its checksum is wrong.")
    try:
        return from_bytes(payload)
    except ValueError as error:
        raise DamagedFileError(f"{path} holds more than storable values.") from error


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk; Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CheckpointFolder:
    """The checkpoints of one run: the last two are kept.

    Parameters
    ----------
    path : path-like
        Made if it is not there; other files in it are left alone.

    Attributes
    ----------
    path : pathlib.Path
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._last: Path | None = None

    def read(self) -> Any:
        """Return the content of the last whole checkpoint, or None.

        Returns
        -------
        object or None
            None if there is no checkpoint.

        Raises
        ------
        DamagedFileError
            If there are checkpoints, and none is whole.

        Warns
        -----
        UserWarning
            For each that is damaged, where an earlier one is whole.
        """
        faults = []
        for path in reversed(self._files()):
            try:
                content = read_file(path)
            except DamagedFileError as error:
                faults.append(str(error))
                continue
            for fault in faults:
                warnings.warn(
                    f"{fault} Going on from the one before, {path.name}.", stacklevel=2
                )
            self._last = path
            return content
        if faults:
            raise DamagedFileError(
                f"No checkpoint in {self.path} can be used. {' '.join(faults)} Empty "
                "the folder, or name another one, to begin anew."
            )
        return None

    def write(self, content: Any) -> None:
        """Write a checkpoint, and then remove all but this one and the one before.

        Parameters
        ----------
        content : object
            As for :func:`write_file`.
        """
        files = self._files()
        number = _number(files[-1]) + 1 if files else 0
        path = self.path / f"checkpoint-{number:08d}.flatmin"
        write_file(path, content)
        for old in files:
            if old != self._last:
                old.unlink(missing_ok=True)
        self._last = path

    def _files(self) -> list[Path]:
        """Return the checkpoints, the last one at the end."""
        found = self.path.glob("checkpoint-*.flatmin")
        named = [path for path in found if path.stem.partition("-")[2].isdecimal()]
        return sorted(named, key=_number)


def check_checkpoint_every(
    path: str | os.PathLike[str] | None, every: int | None
) -> None:
    """Raise if an interval is given, and no folder.

    Parameters
    ----------
    path : path-like or None
        The ``checkpoint_dir``.
    every : int or None
        The ``checkpoint_every``.

    Raises
    ------
    ValueError
        With what was given.
    """
    if path is None and every is not None:
        raise ValueError(
            "checkpoint_every needs a checkpoint_dir. Got checkpoint_dir=None and "
            f"checkpoint_every={every}."
        )


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[2])
