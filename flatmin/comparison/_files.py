"""A comparison as files: JSON with all numbers, and the parameters beside it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from flatmin._runs.checkpoint_files import replace_file
from flatmin._utils.regular_files import is_there, open_regular

__all__ = ["checksum", "params_path", "read_comparison", "write_comparison"]

_FORMAT = "flatmin.comparison/3"
# 1 had no checksum; 2 called the columns of the test data valid_loss and valid_score.
_EARLIER = ("flatmin.comparison/1", "flatmin.comparison/2")

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
    *,
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
        replace_file(params_path(path), lambda file: np.savez(file, **arrays))
    # The checksum is of what will be read: JSON turns tuples into lists, and keys into
    # strings.
    content = json.loads(json.dumps(content, ensure_ascii=False, allow_nan=False))
    content["sha256"] = checksum(content)
    text = json.dumps(content, ensure_ascii=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode("utf-8")))


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
        with open_regular(path) as file:
            # A file of another kind may be of any length: only its beginning is read.
            start = file.read(100)
            rest = file.read() if start.lstrip().startswith(b"{") else b""
        content = json.loads((start + rest).decode("utf-8"))
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is not JSON, or cut off: {error}.") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found in _EARLIER:
        raise ValueError(
            f"{path} must be of the format {_FORMAT!r}. Got {found!r}, of an earlier "
            "revision of flatmin; if nobody has edited it, benchmarks/"
            f"convert_comparison.py {path.name} converts it."
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
    if not is_there(path):
        return dict.fromkeys(keys)
    fault = None
    with open_regular(path) as opened:
        try:
            _check_size(opened)
            with np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in set(index["sha256"])}
        except Exception as error:  # zip, zlib and NumPy's header have many
            fault = error
    if fault or not all(
        theta.ndim == 1 and _digest(theta) == name for name, theta in arrays.items()
    ):
        raise ValueError(
            f"{path} is damaged, or holds the parameters of another result than the "
            "JSON beside it names. Put the one that was written with it there, or move "
            "it away to read the numbers alone."
        ) from fault
    for theta in arrays.values():
        theta.flags.writeable = False  # some are shared
    return dict(zip(keys, (arrays[name] for name in index["sha256"]), strict=True))


def _check_size(file: BinaryIO) -> None:
    """Raise if the arrays take more than the file does, as what is compressed may."""
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > file.seek(0, os.SEEK_END):
        raise ValueError(f"{size} bytes of arrays")
    file.seek(0)


def _digest(theta: np.ndarray) -> str:
    return hashlib.sha256(theta.dtype.str.encode() + theta.tobytes()).hexdigest()


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
