"""The folders of one comparison on several machines as one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from flatmin._runs.checkpoint_files import read_file, write_file
from flatmin._runs.fingerprint import check_identity
from flatmin._runs.folder_lock import locked_folder
from flatmin._utils.messages import naming
from flatmin._utils.paths import check_path
from flatmin.comparison._machines import describe_mixture

__all__ = ["merge_checkpoints"]


class _Kept(NamedTuple):
    """A unit or a warm-up that has ended."""

    path: Path
    identity: dict[str, str]
    content: dict[str, Any]


def merge_checkpoints(
    folders: Iterable[str | os.PathLike[str]], into: str | os.PathLike[str]
) -> pd.DataFrame:
    """Put the ``checkpoint_dir`` of several calls of one comparison into one folder.

    Each machine runs some seeds, all methods of them: differences are paired by seed.
    ``compare_dynamics`` with ``checkpoint_dir=into`` then takes from it what is there
    and runs what is missing. Units on their way stay where they are.

    Parameters
    ----------
    folders : iterable of path-like
        They are only read.
    into : path-like
        May hold units of the same comparison, and may be new.

    Returns
    -------
    pandas.DataFrame
        What ``into`` holds then, a row a unit: method, seed, and the processor and the
        device that it was run on.

    Raises
    ------
    TypeError
        If a folder is no path.
    ValueError
        If one holds nothing, or a unit of another protocol, or if the units of a seed
        were run on several kinds of machine. Nothing is written then.
    OSError
        If ``into`` cannot be written.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import NoisyDiffusionClassifier, compare_dynamics
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = NoisyDiffusionClassifier(max_iter=20)
    >>> import tempfile
    >>> from pathlib import Path
    >>> from flatmin.comparison import merge_checkpoints
    >>> folder = Path(tempfile.mkdtemp())
    >>> for seed in (0, 1):
    ...     _ = compare_dynamics(
    ...         ["gd"], X, y, estimator=clf, n_seeds=[seed], random_state=0,
    ...         checkpoint_dir=folder / str(seed),
    ...     )
    >>> len(merge_checkpoints([folder / "0", folder / "1"], folder / "both"))
    2
    """
    check_path("into", into)
    if isinstance(folders, str | os.PathLike):
        folders = [folders]
    with naming("folders"):
        paths = [Path(_checked(folder)) for folder in folders]
    target = Path(into)
    kept: dict[str, _Kept] = {}
    for path in [target, *paths] if target.is_dir() else paths:
        found = _ended(path)
        if not found and path != target:
            raise ValueError(
                "folders must be checkpoint_dirs of compare_dynamics in which "
                f"something has ended. Got {path}, which holds nothing of that kind."
            )
        for name, unit in found.items():
            kept.setdefault(name, unit)
            check_identity(unit.path, unit.identity, kept[name].identity)
    _check_protocol(kept)
    units = {name: unit for name, unit in kept.items() if "record" in unit.content}
    records = [unit.content["record"] for unit in units.values()]
    origins = [unit.content["provenance"] for unit in units.values()]
    mixed = describe_mixture(
        (record["seed"], origin)
        for record, origin in zip(records, origins, strict=True)
    )
    if mixed is not None:
        raise ValueError(
            f"All methods of a seed must be run on one kind of machine. {mixed}; leave "
            "out the folder of one of them, and let compare_dynamics run the rest."
        )
    for name, unit in kept.items():
        if unit.path.parent != target:
            with locked_folder(target / name):
                write_file(target / name / "begin.flatmin", unit.identity)
                write_file(target / name / "end.flatmin", unit.content)
    machines = [origin["machine"] for origin in origins]
    return pd.DataFrame(
        {
            "method": [record["method"] for record in records],
            "seed": [record["seed"] for record in records],
            "processor": [machine["processor"] for machine in machines],
            "device": [machine["device"] for machine in machines],
        }
    )


def _checked(folder: Any) -> Any:
    check_path("a folder", folder)
    return folder


def _ended(folder: Path) -> dict[str, _Kept]:
    if not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        if (path / "end.flatmin").is_file() and (path / "begin.flatmin").is_file():
            begin, end = (read_file(path / f"{n}.flatmin") for n in ("begin", "end"))
            found[path.name] = _Kept(path, begin, end)
    return found


def _check_protocol(kept: dict[str, _Kept]) -> None:
    """Raise unless all warm-ups, and all units of a method, are of one protocol."""
    first: dict[str, _Kept] = {}
    for name, unit in kept.items():
        kind = name.rpartition("-")[0]  # a name ends with the seed
        known = first.setdefault(kind, unit)
        check_identity(unit.path, unit.identity, known.identity)
