"""The outcome of a comparison: a table, its summary, and a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flatmin._utils.names import check_known
from flatmin.comparison._statistics import holm, paired_difference

__all__ = ["ComparisonResult", "merge_comparisons"]

_FORMAT = "flatmin.comparison/1"
_TEXT = {"method", "phase", "status", "error", "message"}
_WHOLE = {"seed", "iteration"}

# Of a summary.
_KEYS = ("column", "phase", "method")
_STATISTICS = ("mean", "std", "difference", "low", "high", "p_value", "p_holm")
_STATISTICS += ("n", "n_failed")


@dataclass(frozen=True)
class ComparisonResult:
    """What :func:`compare_dynamics` found.

    Attributes
    ----------
    table : pandas.DataFrame
        A row for every recorded point of every unit, a unit being a method with a seed:
        method, seed, iteration, phase ("warmup", "noise" or "quench"), the columns of
        the estimator's ``history_``, the metrics, the distance ‖θ - θ₀‖ from where the
        noise was switched on, and the end metrics in the rows where a phase begins or
        ends. Iterations count from that switch, so those of the warm-up are negative;
        its rows are repeated for every method.
    units : pandas.DataFrame
        A row for every unit: method, seed, status ("done" or "failed"), the phase that
        it got to, error and message, and the seconds it took.
    protocol : dict
        Settings of the estimator, of each method, and of the comparison.
    provenance : list of dict
        Versions and machine; several, if results of several machines were merged.
    """

    table: pd.DataFrame
    units: pd.DataFrame
    protocol: dict[str, Any]
    provenance: list[dict[str, Any]]

    @property
    def methods(self) -> list[str]:
        """Labels, in the order of the call."""
        return list(self.protocol["methods"])

    @property
    def seeds(self) -> list[int]:
        """Seeds, in the order of the call."""
        return [int(seed) for seed in self.units["seed"].unique()]

    @property
    def failures(self) -> pd.DataFrame:
        """The units that did not come to their end."""
        return self.units[self.units["status"] != "done"]

    def ends(self) -> pd.DataFrame:
        """Return where each phase of each unit ended.

        Returns
        -------
        pandas.DataFrame
            Indexed by phase ("start", "noise", "quench"), method and seed. "start" is
            where the noise was switched on. A phase that a failure cut short has none.
        """
        rows = self.table[self.table["phase"] != "warmup"]
        start = rows[(rows["phase"] == "noise") & (rows["iteration"] == 0)]
        last = rows.groupby(["phase", "method", "seed"], sort=False).tail(1)
        failed = pd.MultiIndex.from_frame(self.failures[["phase", "method", "seed"]])
        keys = pd.MultiIndex.from_frame(last[["phase", "method", "seed"]])
        found = [start.assign(phase="start"), last[~keys.isin(failed)]]
        return pd.concat(found).set_index(["phase", "method", "seed"]).sort_index()

    def summary(
        self,
        baseline: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        confidence: float = 0.95,
    ) -> pd.DataFrame:
        """Return means over seeds, and paired differences from a baseline.

        A seed decides data, initialisation and noise for all methods, so a difference
        is that of two methods on the same seed; see :func:`paired_difference`. The
        p values of one quantity are adjusted for the number of methods by
        :func:`holm`. A unit that failed has no end, and so no difference: it is
        counted in n_failed.

        Parameters
        ----------
        baseline : str, default=None
            A label; None is the first method.
        columns : sequence of str, default=None
            Of the table; None is all with numbers.
        confidence : float, default=0.95
            Of the t intervals, each for itself.

        Returns
        -------
        pandas.DataFrame
            Indexed by column, phase ("noise", "quench") and method: mean, std over
            seeds with ddof 1, difference, low and high, p_value, p_holm, n (pairs) and
            n_failed.

        Raises
        ------
        ValueError
            If there is no such label or column.
        """
        baseline = self.methods[0] if baseline is None else baseline
        check_known("baseline", baseline, self.methods)
        ends: Any = self.ends()
        numeric = ends.select_dtypes("number").columns.drop("iteration")
        for column in columns or ():
            check_known("column", column, numeric)
        rows = []
        for column in columns or numeric:
            for phase in ("noise", "quench"):
                if phase in ends.index:
                    values = ends.loc[phase, column].unstack("method")
                    rows += self._differences(
                        values.reindex(index=self.seeds, columns=self.methods),
                        baseline,
                        confidence,
                        {"column": column, "phase": phase},
                    )
        frame = pd.DataFrame(rows, columns=[*_KEYS, *_STATISTICS])
        return frame.set_index(list(_KEYS))

    def _differences(
        self,
        values: pd.DataFrame,  # (n_seeds, n_methods)
        baseline: str,
        confidence: float,
        keys: dict[str, str],
    ) -> list[dict[str, Any]]:
        failed = self.failures["method"].value_counts()
        rows = []
        for method in self.methods:
            column = values[method].dropna()
            row: dict[str, Any] = {**keys, "method": method, "mean": column.mean()}
            row |= {"std": column.std(), "n_failed": int(failed.get(method, 0))}
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

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything into a file.

        Parameters
        ----------
        path : str or path-like
            Replaced as a whole, or not at all.
        """
        content = {
            "format": _FORMAT,
            "protocol": self.protocol,
            "provenance": self.provenance,
            "units": _to_lists(self.units),
            "table": _to_lists(self.table),
        }
        path = Path(path)
        written = path.with_name(f"{path.name}.part")
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        written.write_text(text + "\n", encoding="utf-8")
        written.replace(path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> ComparisonResult:
        """Read what :meth:`to_json` wrote; all numbers are the same to the last bit.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        ComparisonResult

        Raises
        ------
        ValueError
            If the file holds something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON, or cut off: {error}.") from error
        found = content.get("format") if isinstance(content, dict) else None
        if found != _FORMAT:
            raise ValueError(
                f"{path} must be a file that ComparisonResult.to_json wrote, of the "
                f"format {_FORMAT!r}. Got {found!r}."
            )
        return cls(
            _from_lists(content["table"]),
            _from_lists(content["units"]),
            content["protocol"],
            content["provenance"],
        )


def merge_comparisons(results: Sequence[ComparisonResult]) -> ComparisonResult:
    """Put comparisons of one protocol together: other methods, other seeds.

    Parameters
    ----------
    results : sequence of ComparisonResult

    Returns
    -------
    ComparisonResult
        Methods and seeds in order of their first appearance.

    Raises
    ------
    ValueError
        If there are none, their protocols differ, or a unit is in two of them.
    """
    if not results:
        raise ValueError("merge_comparisons needs at least one result. Got none.")
    methods: dict[str, Any] = {}
    machines: list[dict[str, Any]] = []
    common = {**results[0].protocol, "methods": None}
    for result in results:
        own = result.protocol["methods"]
        if {**result.protocol, "methods": None} != common or any(
            methods.get(label, settings) != settings for label, settings in own.items()
        ):
            raise ValueError(
                "Results can be merged if their protocols differ in methods and seeds "
                f"alone. Got {common} and {result.protocol}."
            )
        methods |= own
        machines += [found for found in result.provenance if found not in machines]
    units = pd.concat([result.units for result in results], ignore_index=True)
    twice = units[units.duplicated(["method", "seed"])]
    if len(twice):
        method, seed = twice.iloc[0][["method", "seed"]]
        raise ValueError(
            f"Every unit may be there once. Got {method!r} with seed {seed} twice."
        )
    return ComparisonResult(
        pd.concat([result.table for result in results], ignore_index=True),
        units,
        {**common, "methods": methods},
        machines,
    )


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


def _from_lists(columns: dict[str, list[Any]]) -> pd.DataFrame:
    # None: pandas infers its own kind of text, which its versions differ in.
    kinds = dict.fromkeys(_TEXT, None) | dict.fromkeys(_WHOLE, "int64")
    return pd.DataFrame(
        {
            name: pd.Series(values, dtype=kinds.get(name, "float64"))
            for name, values in columns.items()
        }
    )
