"""A comparison as files: JSON with all numbers, and the parameters beside it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

__all__ = ["checksum", "params_path", "read_comparison", "write_comparison"]

_FORMAT = "flatmin.comparison/2"
_WITHOUT_CHECKSUM = "flatmin.comparison/1"

_TEXT_OF_TABLE = ("method", "phase")
_TEXT_OF_UNITS = ("method", "phase", "status", "error", "message", "quench_loss")
_WHOLE = ("seed", "iteration")

EndPoints = Mapping[tuple[str, int, str], np.ndarray | None]


def params_path(path: Path) -> Path:
    """Return where the parameters of a comparison are.

    Parameters
    ----------
    path : pathlib.Path
        Of the JSON.

    Returns
    -------
    pathlib.Path

    Examples
    --------
    >>> params_path(Path("figure5.json")).name
    'figure5.params.npz'
    """
    return path.with_name(f"{path.name.removesuffix('.json')}.params.npz")


def write_comparison(
    path: Path,
    table: pd.DataFrame,
    units: pd.DataFrame,
    rest: Mapping[str, Any],
    end_points: EndPoints,
) -> None:
    """Write the file, and if there are parameters the one with them.

    Parameters
    ----------
    path : pathlib.Path
    table, units : pandas.DataFrame
    rest : mapping
        What JSON can hold.
    end_points : mapping of (method, seed, phase) to ndarray
        None is left out.
    """
    content = {"format": _FORMAT, **rest}
    content |= {"units": _to_lists(units), "table": _to_lists(table)}
    held = {key: theta for key, theta in end_points.items() if theta is not None}
    if held:
        # Methods of a seed start at one point, which is there once.
        digests = {key: _digest(theta) for key, theta in held.items()}
        arrays: dict[str, Any] = {digests[key]: held[key] for key in held}
        columns: Any = zip(*held, strict=True)
        content["params"] = dict(zip(("method", "seed", "phase"), columns, strict=True))
        content["params"]["sha256"] = list(digests.values())
        # First: without the JSON that names them, they are nothing.
        _replace(params_path(path), lambda file: np.savez(file, **arrays))
    # As they are read: JSON makes lists of tuples, and strings of keys.
    content = json.loads(json.dumps(content, ensure_ascii=False, allow_nan=False))
    content["sha256"] = checksum(content)
    text = json.dumps(content, ensure_ascii=False) + "\n"
    _replace(path, lambda file: file.write(text.encode("utf-8")))


def read_comparison(path: Path) -> dict[str, Any]:
    """Read what :func:`write_comparison` wrote.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    dict
        table, units, protocol, provenance and end_points. The last are None where they
        are in a file that is not there.

    Raises
    ------
    ValueError
        If a file holds something else, or has been changed since it was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, or cut off: {error}.") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found == _WITHOUT_CHECKSUM:
        raise ValueError(
            f"{path} must have a checksum. Got a result of an earlier revision of "
            "flatmin, which wrote none; if nobody has edited it, "
            f"benchmarks/add_checksum.py {path.name} adds one."
        )
    if found != _FORMAT:
        raise ValueError(
            f"{path} must be a file that ComparisonResult.to_json wrote, of the "
            f"format {_FORMAT!r}. Got {found!r}."
        )
    if content.get("sha256") != checksum(content):
        raise ValueError(
            f"{path} must be as ComparisonResult.to_json wrote it. Got one whose "
            "checksum is wrong: it was edited, or damaged. Take the file that was "
            "written, and change the data frames that from_json makes of it."
        )
    return {
        "table": _from_lists(content["table"], _TEXT_OF_TABLE),
        "units": _from_lists(content["units"], _TEXT_OF_UNITS),
        "protocol": content["protocol"],
        "provenance": content["provenance"],
        "end_points": _read_params(params_path(path), content.get("params")),
    }


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a file says, whatever its white space.

    Parameters
    ----------
    content : mapping
        As it was read from JSON; its own ``"sha256"`` does not count.

    Returns
    -------
    str

    Examples
    --------
    >>> checksum({"a": 1})[:8] == checksum({"a": 1, "sha256": "x"})[:8]
    True
    """
    said = {name: part for name, part in content.items() if name != "sha256"}
    text = json.dumps(said, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _read_params(path: Path, index: Any) -> dict[tuple[str, int, str], Any]:
    if index is None:
        return {}
    keys = list(zip(index["method"], index["seed"], index["phase"], strict=True))
    if not path.exists():
        return dict.fromkeys(keys)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in set(index["sha256"])}
        whole = all(_digest(theta) == name for name, theta in arrays.items())
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        whole = False
    if not whole:
        raise ValueError(
            f"{path} is damaged, or holds the parameters of another result than the "
            "JSON beside it names. Put the one that was written with it there, or move "
            "it away to read the numbers alone."
        )
    for theta in arrays.values():
        theta.flags.writeable = False  # some are shared
    return dict(zip(keys, (arrays[name] for name in index["sha256"]), strict=True))


def _digest(theta: np.ndarray) -> str:
    return hashlib.sha256(theta.dtype.str.encode() + theta.tobytes()).hexdigest()


def _replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file that is whole, or as it was before."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
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


def _to_lists(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return columns as lists; JSON has no NaN and no infinity."""
    return {
        str(name): [
            value if not isinstance(value, float) or math.isfinite(value)
            # float() reads "inf" again.
            else None if math.isnan(value) else str(value)
            for value in column.tolist()
        ]
        for name, column in frame.items()
    }  # fmt: skip


def _from_lists(columns: dict[str, list[Any]], text: tuple[str, ...]) -> pd.DataFrame:
    # None: pandas infers its own kind of text, which its versions differ in.
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Columns of a result must be of one length. Got {lengths}.")
    kinds = dict.fromkeys(text, None) | dict.fromkeys(_WHOLE, "int64")
    return pd.DataFrame(
        {
            name: pd.Series(values, dtype=kinds.get(name, _number_kind(values)))
            for name, values in columns.items()
        }
    )


def _number_kind(values: list[Any]) -> str:
    """Return what a column of numbers was: JSON writes 1 and 1.0 apart."""
    counts = values and all(type(value) is int for value in values)
    return "int64" if counts else "float64"
