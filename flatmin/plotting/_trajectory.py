"""Accuracy, loss and sharpness of several methods over iterations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from flatmin._utils.messages import naming
from flatmin._utils.names import check_known
from flatmin.plotting._bands import SPREADS, band, check_band
from flatmin.plotting._base import BaseDisplay
from flatmin.plotting._figure import LABELS, legend, line_styles, make_axes, tidy_axes
from flatmin.plotting._histories import read_histories

__all__ = ["TrajectoryDisplay"]

# The first of each group that there is, and that says something.
_DEFAULTS = (
    ("test_score", "test_accuracy", "valid_score", "train_score"),
    ("loss",),
    ("sharpness",),
)
_LOG_FROM = 20  # ratio of the largest to the smallest value


class TrajectoryDisplay(BaseDisplay):
    """Quantities of training runs by method: mean over seeds, and a band.

    It is recommended to use :meth:`from_estimator` or :meth:`from_results`. A method's
    curve ends where its first seed ends. A warm-up that all methods share is drawn
    once, in grey; upright lines mark the switch to the noise and, where there is one,
    the quench. A quench to a loss, which ends elsewhere in every run, is not drawn.

    Parameters
    ----------
    history : DataFrame
        One row for each method, seed and iteration: the columns ``method``, ``seed``,
        ``iteration``, if there is a warm-up or a quench also ``phase`` ("warmup",
        "noise", "quench"), and any numbers. Without ``method`` or ``seed`` there is
        one.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One for each quantity; ``ax_`` is the first.
    figure_ : matplotlib Figure
    lines_ : dict of (str, str) to Line2D
        By quantity and method.
    bands_ : dict of (str, str) to matplotlib PolyCollection
        Where there is more than one seed.

    Examples
    --------
    >>> import pandas as pd
    >>> from flatmin.plotting import TrajectoryDisplay
    >>> runs = pd.DataFrame({"iteration": [0, 1, 2], "loss": [4.0, 2.0, 1.0]})
    >>> TrajectoryDisplay(runs.assign(phase=["warmup", "noise", "noise"])).switches()
    {'switch': [1]}
    """

    def __init__(self, history):
        self.history = history

    @classmethod
    def from_estimator(
        cls,
        estimators: Any,
        quantities: Sequence[str] | None = None,
        *,
        ax: Any = None,
        **plot_options: Any,
    ) -> TrajectoryDisplay:
        """Draw the histories of fitted flatmin estimators.

        Parameters
        ----------
        estimators : flatmin estimator, sequence of them, or dict of str to either
            Fitted. A dict has labels as keys; else the label is ``estimator.method``.
            The runs of a label are seeds of one method, whose mean is drawn: the seed
            is ``random_state``, or without one the place.
        quantities : sequence of str, default=None
            See :meth:`plot`.
        ax : matplotlib Axes or sequence of them, default=None
            See :meth:`plot`.
        **plot_options
            Handed to :meth:`plot`.

        Returns
        -------
        TrajectoryDisplay

        Raises
        ------
        TypeError
            If one keeps no history.
        ValueError
            If there is none, or the runs of a label differ in more than the seed and
            the start, or not in the seed.
        """
        display = cls.from_results(read_histories(estimators))
        return display.plot(ax, quantities=quantities, **plot_options)

    @classmethod
    def from_results(cls, results: Any) -> TrajectoryDisplay:
        """Take a table of runs; nothing is drawn yet.

        Parameters
        ----------
        results : DataFrame, or a result with such a ``table``
            See the class. That of ``compare_dynamics`` has one.

        Returns
        -------
        TrajectoryDisplay

        Raises
        ------
        TypeError
            If there is no table.
        ValueError
            If the table has no iterations, or an unknown phase.
        """
        frame = getattr(results, "table", results)
        if isinstance(frame, pd.DataFrame):
            named = {"method", "seed", "iteration"}.intersection(frame.index.names)
            frame = frame.reset_index(list(named)) if named else frame
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(
                "results must be a DataFrame with one row for each method, seed and "
                f"iteration, or have one as its table. Got {results!r}."
            )
        if "quench_loss" in set(frame.get("phase", ())):
            # A second way on from where the noise ended.
            frame = frame[frame["phase"] != "quench_loss"]
        phases = set(frame.get("phase", ())) - {"warmup", "noise", "quench"}
        if phases:
            raise ValueError(
                "phase must be 'warmup', 'noise' or 'quench'. Got "
                f"{', '.join(map(repr, sorted(phases, key=str)))}."
            )
        if "iteration" not in frame or frame.empty:
            raise ValueError(
                "results must have rows and a column 'iteration'. Got "
                f"{len(frame)} rows of {', '.join(map(str, frame.columns))}."
            )
        return cls(frame)

    def switches(self) -> dict[str, list[int]]:
        """Return the iterations at which the noise begins and ends.

        Returns
        -------
        dict
            "switch" where there is a warm-up, "quench" where there is one; several
            iterations where the runs differ.
        """
        if "phase" not in self.history:
            return {}
        runs = self.history[["iteration", "phase"]].assign(run=self._runs())
        first = runs.groupby(["phase", "run"], observed=True)["iteration"].min()
        found = {}
        for name, phase, before in [
            ("switch", "noise", "warmup"),
            ("quench", "quench", "noise"),
        ]:
            if {phase, before} <= set(runs["phase"]):
                found[name] = sorted(set(first[phase].tolist()))
        return found

    def plot(
        self,
        ax: Any = None,
        *,
        quantities: Sequence[str] | None = None,
        spread: str = "range",
    ) -> TrajectoryDisplay:
        """Draw, one panel a quantity.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of them, default=None
            One for each quantity, or a single one, which is cut up. None makes a
            figure.
        quantities : sequence of str, default=None
            Columns of the history. None is the score on test data, or if there is none
            on validation data, or else on training data; the loss; the sharpness. A
            logarithmic axis is taken for positive numbers over more than a factor of
            20.
        spread : {"range", "sd", "ci"}, default="range"
            What bands over seeds show: all seeds, one standard deviation (ddof 1) about
            the mean, or its 95 % t interval.

        Returns
        -------
        TrajectoryDisplay

        Raises
        ------
        ValueError
            If a quantity is not in the history, or the runs of a method do not form a
            mean.
        """
        check_band(spread)
        names = self._check_quantities(quantities)
        self._check_rows()
        methods = list(dict.fromkeys(self._methods()))
        styles = dict(zip(methods, line_styles(len(methods)), strict=True))
        curves = {name: self._curves(name, spread) for name in names}
        self.axes_ = make_axes(ax, len(names), vertical=True)
        self.figure_ = self.axes_[0].figure
        self.lines_: dict[tuple[str, str], Any] = {}
        self.bands_: dict[tuple[str, str], Any] = {}
        for name, one in zip(names, self.axes_, strict=True):
            self._draw(one, name, curves[name], styles)
        self.axes_[-1].set_xlabel("iteration")
        self.figure_.align_ylabels(self.axes_)
        title = self._title(spread, names)
        if len(methods) > 1 or title is not None or self.switches():
            legend(self.axes_[0], title=title)
        for one in self.axes_:
            tidy_axes(one)
        return self

    def _check_quantities(self, quantities: Sequence[str] | None) -> list[str]:
        numbers = [
            str(name)
            for name in self.history.select_dtypes("number")
            if name not in ("iteration", "seed") and self.history[name].notna().any()
        ]
        given = quantities is not None
        if quantities is None:
            found = [
                next((name for name in group if name in numbers), None)
                for group in _DEFAULTS
            ]
            quantities = [name for name in found if name is not None] or numbers[:3]
        if isinstance(quantities, str):
            quantities = [quantities]
        if not isinstance(quantities, Iterable):
            raise TypeError(f"quantities must be names of columns. Got {quantities!r}.")
        with naming("quantities"):
            quantities = list(quantities)
        if given and not quantities:
            raise ValueError("quantities must name at least one column. Got none.")
        for name in quantities:
            check_known("quantity", name, numbers)
        if not quantities:
            raise ValueError(
                "There is nothing to draw: the history has no column of numbers beside "
                "method, seed and iteration."
            )
        return list(quantities)

    def _methods(self) -> pd.Series:
        if "method" in self.history:
            return self.history["method"].astype(str)
        return pd.Series("run", self.history.index)

    def _seeds(self) -> pd.Series:
        if "seed" in self.history:
            return self.history["seed"]
        return pd.Series(0, self.history.index)

    def _runs(self) -> pd.Series:
        return self._methods() + " " + self._seeds().astype(str)

    def _title(self, spread: str, names: list[str]) -> str | None:
        """Return what a band shows, with the seeds that have a value to draw."""
        known = [self._seeds().where(np.isfinite(self.history[name])) for name in names]
        seeds = pd.concat([one.groupby(self._methods()).nunique() for one in known])
        seeds = seeds[seeds > 0]  # a method without values has no curve
        if not seeds.max() > 1:
            return None
        few, many = int(seeds.min()), int(seeds.max())
        counts = str(many) if few == many else f"{few} to {many}"
        return f"mean and {SPREADS[spread]} of {counts} seeds"

    def _curves(self, name: str, spread: str) -> dict[str, pd.DataFrame]:
        """Return the curve of every method, and that of a shared warm-up as ""."""
        columns = {
            "method": self._methods(),
            "seed": self._seeds(),
            "iteration": self.history["iteration"],
            "phase": self.history.get("phase", "noise"),
            name: self.history[name],
        }
        runs = pd.DataFrame(columns).dropna(subset=[name])
        curves: dict[str, pd.DataFrame] = {}
        warm = runs[runs["phase"] == "warmup"]
        shared = runs["method"].nunique() > 1 and len(warm) > 0
        if shared:
            spreads = warm.groupby(["seed", "iteration"])[name].agg(["nunique", "size"])
            n_methods = runs["method"].nunique()
            shared = bool((spreads == [1, n_methods]).all(axis=None))
        if shared:
            one = warm.drop_duplicates(["seed", "iteration"])
            curves[""] = band(one, name, spread)
            runs = runs[runs["phase"] != "warmup"]
        for method, group in runs.groupby("method", sort=False):
            curves[str(method)] = band(group, name, spread)
        if shared:
            # Lead the warm-up to where the methods begin, if they begin at one point.
            starts = pd.concat([c.head(1) for m, c in curves.items() if m])
            first = starts[starts.index == starts.index.min()]
            if first["mean"].nunique() == 1:
                curves[""] = pd.concat([curves[""], first.head(1)])
        return curves

    def _check_rows(self) -> None:
        keys = {"method": self._methods(), "seed": self._seeds()}
        keys |= {"iteration": self.history["iteration"]}
        keys |= {"phase": self.history.get("phase", "noise")}
        repeated = pd.DataFrame(keys).duplicated()
        if repeated.any():
            row = pd.DataFrame(keys)[repeated].iloc[0]
            raise ValueError(
                "A method must have one row for each seed and iteration. Got several "
                f"for method {row['method']!r}, seed {row['seed']}, iteration "
                f"{row['iteration']}; give the runs different seeds or method names."
            )

    def _draw(
        self,
        ax: Any,
        name: str,
        curves: dict[str, pd.DataFrame],
        styles: dict[str, dict[str, Any]],
    ) -> None:
        for method, curve in curves.items():
            look = styles.get(method, {"color": "0.45", "linestyle": "-"})
            label = method or "warm-up"
            (line,) = ax.plot(curve["mean"], **look, linewidth=1.4, label=label)
            self.lines_[name, label] = line
            if (curve["high"] > curve["low"]).any():
                self.bands_[name, label] = ax.fill_between(
                    curve.index,
                    curve["low"],
                    curve["high"],
                    color=look["color"],
                    alpha=0.18,
                    linewidth=0,
                )
        values = np.concatenate([curve["mean"] for curve in curves.values()])
        if len(values) and values.min() > 0 and values.max() > _LOG_FROM * values.min():
            ax.set_yscale("log")
        dots = {"switch": ":", "quench": "-."}
        for marker, iterations in self.switches().items():
            for i, iteration in enumerate(iterations):
                ax.axvline(
                    iteration,
                    color="0.3",
                    linestyle=dots[marker],
                    linewidth=1,
                    zorder=0,
                    label=marker if i == 0 else None,
                )
        ax.set_ylabel(LABELS.get(name, name.replace("_", " ")))
