"""Where methods end, and how they differ from one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from flatmin._utils.messages import naming
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_flag
from flatmin.comparison import ComparisonResult
from flatmin.comparison._ends import PHASES
from flatmin.plotting._base import BaseDisplay
from flatmin.plotting._comparison_drawing import draw_differences, draw_ends
from flatmin.plotting._figure import check_axes, line_styles, make_axes

__all__ = ["ComparisonDisplay"]

_KINDS = ("ends", "differences")
# The first that there is, of what is drawn to the right and upwards.
_SHARPNESS = ("end_sharpness", "sharpness", "max_eigenvalue", "trace_sharpness")
_SCORES = ("test_score", "valid_score", "train_score")
_PHASES = PHASES[1:]  # without the start


class ComparisonDisplay(BaseDisplay):
    """The end points of a comparison, and paired differences with their intervals.

    It is recommended to use :meth:`from_results`.

    Parameters
    ----------
    ends : pandas.DataFrame
        A row for each unit and phase: phase, method, seed and numbers.
    differences : pandas.DataFrame, default=None
        A row for each column, phase and method: column, phase, method, difference from
        the baseline, low and high of its interval, n pairs. None draws end points
        alone.
    baseline : str, default=None
        The method that the differences are from; None is the first.
    confidence : float, default=0.95
        Of the intervals.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One for the end points, or one for each column of differences; ``ax_`` is the
        first.
    figure_ : matplotlib Figure
    marks_ : dict
        Of the means by method, or of the differences by column, phase and method.
    unit_marks_ : dict of str to matplotlib Line2D
        The units of a method, a mark each.

    See Also
    --------
    TrajectoryDisplay : The runs that lead to these ends.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> import pandas as pd
    >>> from flatmin.plotting import ComparisonDisplay
    >>> ends = pd.DataFrame({"phase": "noise", "method": ["gd", "sgd"], "seed": 0})
    >>> ends = ends.assign(sharpness=[2.0, 1.0], test_score=[0.8, 0.9])
    >>> display = ComparisonDisplay(ends).plot()
    >>> {name: mark.get_xdata().tolist() for name, mark in display.marks_.items()}
    {'gd': [2.0], 'sgd': [1.0]}
    >>> plt.close(display.figure_)
    """

    def __init__(self, ends, differences=None, *, baseline=None, confidence=0.95):
        self.ends = ends
        self.differences = differences
        self.baseline = baseline
        self.confidence = confidence

    @classmethod
    def from_results(
        cls,
        result: ComparisonResult,
        *,
        methods: str | Iterable[str] | None = None,
        baseline: str | None = None,
        columns: str | Iterable[str] | None = None,
        confidence: float = 0.95,
    ) -> ComparisonDisplay:
        """Take what ``compare_dynamics`` found; nothing is drawn yet.

        Parameters
        ----------
        result : ComparisonResult
            Also one that was read from a file, or merged.
        methods : str or iterable of str, default=None
            Which to show; None is all.
        baseline : str, default=None
            A method, which is shown too; None is the first.
        columns : str or iterable of str, default=None
            Whose differences are of interest, also beyond what ``plot`` draws unasked;
            None is the sharpness and the score.
        confidence : float, default=0.95
            Of the intervals; see :meth:`ComparisonResult.summary`.

        Returns
        -------
        ComparisonDisplay

        Raises
        ------
        TypeError
            If it is no such result.
        ValueError
            If there is no such method or column, or no unit came to an end.
        """
        if not isinstance(result, ComparisonResult):
            raise TypeError(
                "result must be a ComparisonResult, which compare_dynamics returns. "
                f"Got {type(result).__name__}."
            )
        shown = _names(methods, "methods") or result.methods
        for name in shown:
            check_known("method", name, result.methods)
        baseline = shown[0] if baseline is None else baseline
        check_known("baseline", baseline, result.methods)
        ends = result.ends().reset_index()
        if not ends["phase"].isin(_PHASES).any():
            raise ValueError(
                "There is nothing to draw: no unit of the result came to an end. Its "
                "failures say why."
            )
        # As asked for, and not in the order of the alphabet.
        names = shown if baseline in shown else [baseline, *shown]
        order = {name: i for i, name in enumerate(names)}
        ends = ends[ends["method"].isin(order)]
        place = ends["method"].map(order)
        ends = ends.loc[place.sort_values(kind="stable").index].reset_index(drop=True)
        wanted = _names(columns, "columns")
        if wanted is None:
            wanted = [c for c in (_first(ends, _SHARPNESS), _first(ends, _SCORES)) if c]
        differences = None
        if len(result.methods) > 1 and wanted:
            options: Any = {"columns": wanted, "confidence": confidence}
            differences = result.summary(baseline, **options).reset_index()
            differences = differences[differences["method"].isin(order)]
        return cls(
            ends,
            differences,
            baseline=baseline,
            confidence=confidence,
        )

    def plot(
        self,
        ax: Any = None,
        *,
        kind: str = "ends",
        x: str | None = None,
        y: str | None = None,
        phase: str | None = None,
        paired: bool = True,
        columns: str | Iterable[str] | None = None,
    ) -> ComparisonDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of them, default=None
            One, or with ``kind="differences"`` one for each column. None makes a
            figure.
        kind : {"ends", "differences"}, default="ends"
            A mark for each unit, and a large one for the mean of its method; or each
            method's mean difference from the baseline with its interval, all phases.
        x, y : str, default=None
            Columns of the end points; None is the sharpness, and the score on the data
            furthest from the training.
        phase : {"noise", "quench", "quench_loss"}, default=None
            Whose end points; None is "quench" where there is one, else "noise".
        paired : bool, default=True
            Move every seed so that all have the same baseline: the data and the start
            that it draws are easy or hard for all methods alike, and what is left is
            the spread of the differences. A seed without a baseline is left out.
        columns : str or iterable of str, default=None
            Of the differences; None is all there are.

        Returns
        -------
        ComparisonDisplay

        Raises
        ------
        ValueError
            If what should be drawn is missing.
        """
        check_known("kind", kind, _KINDS)
        paired = check_flag("paired", paired)
        if kind == "differences":
            return self._plot_differences(ax, columns)
        check_axes(ax, 1)
        points, title = self._points(x, y, phase, paired)
        self.axes_ = make_axes(ax, 1)
        self.figure_ = self.axes_[0].figure
        drawn = draw_ends(self.ax_, points, self._styles(), title)
        self.marks_: dict[Any, Any] = drawn[0]
        self.unit_marks_ = drawn[1]
        return self

    def _styles(self) -> dict[str, dict[str, Any]]:
        methods = list(dict.fromkeys(self.ends["method"]))
        return dict(zip(methods, line_styles(len(methods)), strict=True))

    def _points(
        self, x: str | None, y: str | None, phase: str | None, paired: bool
    ) -> tuple[pd.DataFrame, str]:
        """Return x and y by method and seed, and what the legend says of them."""
        there = [p for p in _PHASES if p in set(self.ends["phase"])]
        if phase is None:
            phase = "quench" if "quench" in there else there[0] if there else "noise"
        check_known("phase", phase, there)
        numbers = list(self.ends.select_dtypes("number").columns.drop("seed"))
        names = [
            self._column("x", x, _SHARPNESS, numbers),
            self._column("y", y, _SCORES, numbers),
        ]
        rows = self.ends[self.ends["phase"] == phase]
        points = rows.set_index(["method", "seed"])[names].dropna()
        points = points[np.isfinite(points).all(axis=1)]
        if points.empty:
            raise ValueError(
                f"There are no end points to draw: {' and '.join(names)} are not known "
                f"at the end of {phase!r}. Choose other columns, or another phase."
            )
        n_seeds = points.index.get_level_values("seed").nunique()
        title = f"{n_seeds} seeds" if n_seeds > 1 else "one seed"
        if paired and n_seeds > 1:
            points, n_left = self._paired(points)
            title = f"{n_left} seeds, paired with {self._baseline()}"
        return points, f"mean and each of {title}" if n_seeds > 1 else title

    def _paired(self, points: pd.DataFrame) -> tuple[pd.DataFrame, int]:
        """Move every seed to the mean of the baseline."""
        name = self._baseline()
        if name not in points.index.get_level_values("method"):
            raise ValueError(
                f"Pairs need the end points of the baseline {name!r}. Got none; pass "
                "paired=False, or another baseline."
            )
        own = points.loc[name]
        seeds = points.index.get_level_values("seed")
        moved = points[seeds.isin(own.index)].sub(own, level="seed") + own.mean()
        return moved, len(own)

    def _baseline(self) -> str:
        first = str(self.ends["method"].iloc[0])
        return first if self.baseline is None else str(self.baseline)

    def _column(
        self, axis: str, name: str | None, defaults: tuple[str, ...], known: list[Any]
    ) -> str:
        if name is None:
            name = _first(self.ends, defaults)
        if name is None:
            raise ValueError(
                f"The end points have none of {', '.join(defaults)}. Pass {axis}=, one "
                f"of {', '.join(map(str, known))}; a sharpness is measured by "
                "end_metrics= of compare_dynamics, or afterwards by measure."
            )
        check_known("column", name, known)
        return name

    def _plot_differences(
        self, ax: Any, columns: str | Iterable[str] | None
    ) -> ComparisonDisplay:
        if self.differences is None or self.differences.empty:
            raise ValueError(
                "Differences need a baseline and another method with an end. Got "
                f"{', '.join(dict.fromkeys(self.ends['method']))}; pass several "
                "methods to compare_dynamics, and columns to from_results."
            )
        table = self.differences[self.differences["method"] != self._baseline()]
        there = list(dict.fromkeys(table["column"]))
        wanted = _names(columns, "columns")
        wanted = there if wanted is None else wanted
        for name in wanted:
            check_known("column", name, there)
        self.axes_ = make_axes(ax, len(wanted))
        self.figure_ = self.axes_[0].figure
        found: dict[Any, Any] = {}
        for i, (column, one) in enumerate(zip(wanted, self.axes_, strict=True)):
            rows = table[table["column"] == column]
            marks = draw_differences(
                one,
                rows,
                baseline=self._baseline(),
                confidence=self.confidence,
                # Beside each other, panels share the names of their rows.
                named=i == 0 or one.get_position().y0 != self.ax_.get_position().y0,
                with_legend=i == 0,
            )
            found |= {(column, *key): mark for key, mark in marks.items()}
        self.marks_ = found
        return self


def _names(given: str | Iterable[str] | None, title: str) -> list[str] | None:
    if given is None:
        return None
    if not isinstance(given, Iterable):
        raise TypeError(f"{title} must be names. Got {given!r}.")
    with naming(title):
        names = [given] if isinstance(given, str) else list(given)
    if not names:
        raise ValueError(f"{title} must hold at least one name. Got none.")
    return names


def _first(ends: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    """Return the first column that is there and holds a number."""
    return next((n for n in names if n in ends and ends[n].notna().any()), None)
