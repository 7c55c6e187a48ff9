"""A comparison in a folder: what has ended, and where the rest stands.

``<method>-<seed>/begin.flatmin`` says what a unit depends on, and ``end.flatmin`` what
came out. Until then the checkpoints of its fits lie beside them. A seed's warm-up has
``warm-up-<seed>`` in the same way.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatmin._runs.checkpoint_files import DamagedFileError, read_file, write_file
from flatmin._runs.fingerprint import check_identity, hashes
from flatmin._runs.folder_lock import is_held, locked_folder, silent_holder
from flatmin.estimators._parameter_roles import parameters_for
from flatmin.noise._registry import registered_laws

__all__ = ["ComparisonFolder", "UnitFolder"]

# What the comparison sets itself, or no result depends on.
_NOT_ITS_OWN = parameters_for("fit", "folder", "bookkeeping")


@dataclass(frozen=True)
class UnitFolder:
    """Where a unit, or a warm-up, is kept; travels to the workers."""

    path: Path | None  # None keeps nothing
    every: int | None
    identity: dict[str, str]  # hashes

    def fits(self, phase: str) -> dict[str, Any]:
        """Return the settings of an estimator that fits a phase."""
        if self.path is None:
            return {}
        folder = {"path": str(self.path / phase), "every": self.every}
        return {"checkpoint_dir": folder}

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the folder while the context lasts, and say whether it was free.

        Yields
        ------
        bool

        Raises
        ------
        ValueError
            If this machine does not see the folder that the caller has made.
        """
        if self.path is not None and not self.path.parent.is_dir():
            raise ValueError(
                "checkpoint_dir must be on a file system that all workers share. Got "
                f"{self.path.parent}, which {platform.node()} does not see."
            )
        with ExitStack() as stack:
            free = True
            try:
                stack.enter_context(locked_folder(self.path, 0))
            except BlockingIOError:
                free = False
            yield free

    def in_use(self) -> bool:
        """Say whether another process, or thread, holds the folder."""
        if self.path is None or not self.path.exists():
            return False
        try:
            return is_held(self.path)
        except OSError:  # the run will meet it, and say so
            return False

    def silent_holder(self, seconds: float) -> str | None:
        """Return who holds the folder elsewhere, with no sign of life for so long."""
        return None if self.path is None else silent_holder(self.path, seconds)

    def begin(self) -> None:
        """Write down what the folder, which is held, is for."""
        if self.path is None:
            return
        # An end that is there may be of another run, whose "begin" was damaged.
        (self.path / "end.flatmin").unlink(missing_ok=True)
        write_file(self.path / "begin.flatmin", self.identity)

    def read(self) -> dict[str, Any] | None:
        """Return what :meth:`write` was given, or None if it has not come to that.

        Returns
        -------
        dict or None

        Raises
        ------
        ValueError
            If the folder is that of another comparison, or the file that of another
            unit.
        """
        if self.path is None:
            return None
        identity = _read(self.path / "begin.flatmin")
        if identity is None:
            return None
        check_identity(self.path, identity, self.identity)
        found: dict[str, Any] | None = _read(self.path / "end.flatmin")
        of = self.path.name if found is None else found.pop("folder", self.path.name)
        if of != self.path.name:
            raise ValueError(
                f"{self.path / 'end.flatmin'} must hold what came out of the unit in "
                f"that folder. Got what came out in {of}; move it back, or delete it."
            )
        return found

    def write(self, content: Mapping[str, Any]) -> None:
        """Keep what came out, and no longer the way there.

        Parameters
        ----------
        content : mapping
            Storable values.

        Warns
        -----
        UserWarning
            If it cannot be written; the checkpoints of the fits then stay.
        """
        if self.path is None:
            return
        try:
            of = {"folder": self.path.name}
            write_file(self.path / "end.flatmin", {**content, **of})
        except OSError as error:
            warnings.warn(
                f"A result could not be kept in {self.path}: {error} What is there is "
                "whole, and the comparison goes on.",
                stacklevel=2,
            )
            return
        for folder in self.path.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)


class ComparisonFolder:
    """The folders of the units of a comparison.

    Parameters
    ----------
    path : path-like or None
        None keeps nothing.
    every : int or None
        Iterations between two checkpoints of a fit.
    protocol : mapping of str to object
        What all units depend on.
    estimator : estimator
        Of the warm-ups.
    estimators : mapping of str to estimator
        Of the units.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        every: int | None,
        protocol: Mapping[str, Any],
        estimator: Any,
        estimators: Mapping[str, Any],
    ) -> None:
        # Absolute: a worker may be elsewhere.
        self._path = None if path is None else Path(path).absolute()
        self._every = every
        self._warmup: dict[str, str] = {}
        self._units: dict[str, dict[str, str]] = {}
        if path is not None:  # hashing what is large takes a while
            common = hashes(protocol)
            self._warmup = {**common, **hashes(_settings(estimator))}
            self._units = {
                label: {**common, **hashes(_settings(unit))}
                for label, unit in estimators.items()
            }

    def check(self) -> None:
        """Raise if nothing can be written or locked there."""
        with locked_folder(self._path):
            pass

    def warmup(self, seed: int) -> UnitFolder:
        """Return the folder of a seed's warm-up."""
        return self._folder("warm-up", seed, self._warmup)

    def unit(self, label: str, seed: int) -> UnitFolder:
        """Return the folder of a unit."""
        # A label may be no name for a file.
        short = hashlib.sha256(label.encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9_]+", "-", label)[:40]
        return self._folder(f"{name}-{short}", seed, self._units.get(label, {}))

    def _folder(self, name: str, seed: int, identity: dict[str, str]) -> UnitFolder:
        path = None if self._path is None else self._path / f"{name}-{seed}"
        return UnitFolder(path, self._every, identity)


def _read(path: Path) -> Any:
    """Return what a file holds, or None if there is no such file, or no whole."""
    try:
        return read_file(path)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        warnings.warn(f"{error} What it held is run again.", stacklevel=3)
        return None


def _settings(estimator: Any) -> dict[str, Any]:
    settings = estimator.get_params(deep=False)
    own = {name: held for name, held in settings.items() if name not in _NOT_ITS_OWN}
    # The code of a law is not found behind a name.
    warmup = estimator.warmup if isinstance(estimator.warmup, Mapping) else {}
    laws = registered_laws(estimator.method, warmup.get("method"))
    return own | ({"registered laws": laws} if laws else {})
