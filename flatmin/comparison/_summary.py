"""Means over seeds, and paired differences from a baseline, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from flatmin._utils.messages import naming
from flatmin._utils.names import check_known
from flatmin.comparison._ends import PHASES, failed_units, is_after, left_out
from flatmin.comparison._statistics import holm, paired_difference

__all__ = ["summarize"]

_KEYS = ("column", "phase", "method")
_STATISTICS = ("mean", "std", "difference", "low", "high", "p_value", "p_holm")
_STATISTICS += ("n", "n_failed", "n_left_out")


def summarize(
    ends: Any,
    units: pd.DataFrame,
    *,
    methods: list[str],
    baseline: str | None,
    columns: Sequence[str] | None,
    confidence: float,
) -> pd.DataFrame:
    """Return what :meth:`ComparisonResult.summary` promises.

    Parameters
    ----------
    ends : pandas.DataFrame
        Indexed by phase, method and seed.
    units : pandas.DataFrame
    methods : list of str
    baseline : str or None
    columns : sequence of str or None
    confidence : float

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    ValueError
        If there is no such label or column.
    """
    baseline = methods[0] if baseline is None else baseline
    check_known("baseline", baseline, methods)
    numeric = ends.select_dtypes("number").columns.drop("iteration")
    with naming("columns"):
        columns = None if columns is None else list(columns)
    for column in columns or ():
        check_known("column", column, numeric)
    seeds = units["seed"].unique()
    rows = []
    for column in columns or numeric:
        for phase in PHASES[1:]:
            own = ends.index.get_level_values("phase") == phase
            if own.any() or (phase == "quench_loss" and len(left_out(units))):
                values = ends.loc[own, column].droplevel("phase").unstack("method")
                values = values.reindex(index=seeds, columns=methods)
                failed, short = _missing(units, phase)
                for row in _differences(values, baseline, confidence):
                    row |= {"column": column, "phase": phase}
                    row["n_failed"] = int((failed == row["method"]).sum())
                    row["n_left_out"] = int((short == row["method"]).sum())
                    rows.append(row)
    frame = pd.DataFrame(rows, columns=[*_KEYS, *_STATISTICS])
    return frame.set_index(list(_KEYS))


def _missing(units: pd.DataFrame, phase: str) -> tuple[Any, Any]:
    """Return the methods of units without this end: of failed ones, and left out."""
    failures, short = failed_units(units), left_out(units)
    behind = [is_after(phase, where) for where in failures["phase"]]
    short = short if phase == "quench_loss" else short.iloc[:0]
    return failures["method"][behind], short["method"]


def _differences(
    values: pd.DataFrame,  # (n_seeds, n_methods)
    baseline: str,
    confidence: float,
) -> list[dict[str, Any]]:
    rows = []
    for method in values:
        column = values[method].dropna()
        row: dict[str, Any] = {"method": method, "mean": column.mean()}
        row["std"] = column.std()
        if method != baseline:
            found = paired_difference(
                values[method], values[baseline], confidence=confidence
            )
            row |= {"difference": found.mean, "low": found.low, "high": found.high}
            row |= {"p_value": found.p_value, "n": found.n}
        else:
            blank = dict.fromkeys(("difference", "low", "high", "p_value"), np.nan)
            row |= {**blank, "n": len(column)}
        rows.append(row)
    for row, p in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows
