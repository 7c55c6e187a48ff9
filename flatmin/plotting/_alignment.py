"""How the eigenvectors of Σ lie to those of H: at one θ, and along a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from flatmin._utils.arrays import to_array
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_count
from flatmin.analysis import Alignment, NoiseCovarianceAnalyzer
from flatmin.measures import random_projection_residual
from flatmin.plotting._bands import band, check_band
from flatmin.plotting._base import BaseDisplay
from flatmin.plotting._figure import (
    check_axes,
    legend,
    line_styles,
    make_axes,
    tidy_axes,
)
from flatmin.plotting._models import fit_analyzer
from flatmin.plotting._undefined import check_drawable

__all__ = ["AlignmentDisplay"]


class AlignmentDisplay(BaseDisplay):
    """|UᵀV| of the leading eigenvectors of H and Σ; cosines and residual along runs.

    It is recommended to use :meth:`from_estimator` or :meth:`from_results`. The
    projection residual is e = ‖U - VVᵀU‖²_F = k - ‖UᵀV‖²_F. Two random subspaces have
    about k(1 - k/D), which is drawn beside it. Inner products of vectors that are
    chance are not defined: they are grey.

    Parameters
    ----------
    inner_products : array-like of shape (k, k), default=None
        \\|uᵢᵀvⱼ\\|, for the heat map.
    history : DataFrame, default=None
        For the curves, one row a seed and iteration: columns ``iteration``,
        ``residual``, ``cosine_1``, ``cosine_2``, … for \\|uᵢᵀvᵢ\\|, and ``seed`` where
        there are several.
    k : int, default=None
        Columns of U and V, for the baseline of the curves.
    n_params : int, default=None
        D, also for the baseline.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One for each panel; ``ax_`` is the first.
    figure_ : matplotlib Figure
    image_ : matplotlib AxesImage
        The heat map.
    colorbar_ : matplotlib Colorbar
    cosine_lines_, residual_line_, baseline_ : list of Line2D, Line2D, Line2D
        The curves.

    See Also
    --------
    flatmin.NoiseCovarianceAnalyzer : Its ``alignment`` gives the numbers.

    Examples
    --------
    >>> from flatmin.plotting import AlignmentDisplay
    >>> AlignmentDisplay(k=20, n_params=11330).baseline()
    19.9647
    """

    def __init__(self, inner_products=None, *, history=None, k=None, n_params=None):
        self.inner_products = inner_products
        self.history = history
        self.k = k
        self.n_params = n_params

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        *,
        sample_weight: Any = None,
        loss: Any = None,
        k: int = 20,
        select: Any = None,
        device: Any = None,
        dtype: Any = None,
        random_state: Any = None,
        ax: Any = None,
        **risk_options: Any,
    ) -> AlignmentDisplay:
        """Compute the eigenvectors of a fitted model and draw the heat map.

        Parameters
        ----------
        estimator : flatmin estimator, skorch net or torch.nn.Module
            As in :class:`flatmin.NoiseCovarianceAnalyzer`.
        X : array-like of shape (n_samples, n_features, ...), default=None
            None is the training data of a flatmin estimator.
        y : array-like of shape (n_samples,), default=None
        sample_weight : array-like of shape (n_samples,), default=None
        loss : str, loss module or callable, default=None
            A module needs one.
        k : int, default=20
            Leading eigenvectors, or all where they are fewer.
        select : str or list of str, default=None
            Names of parameters or modules: the blocks of H and Σ.
        device, dtype : default=None
            Of the analysis; None is the model's.
        random_state : int, RandomState instance or None, default=None
            Of start vectors.
        ax : matplotlib Axes, default=None
            None makes a figure.
        **risk_options
            How the risk of a module is made: ``output_transform``, ``target``,
            ``positions``, ``l2``, ``batch_norm``, ``hvp`` and ``compile``, as in
            :class:`flatmin.CurvatureAnalyzer`.

        Returns
        -------
        AlignmentDisplay
        """
        check_axes(ax, 1)
        analyzer = fit_analyzer(
            NoiseCovarianceAnalyzer,
            estimator,
            (X, y, sample_weight),
            risk_options,
            loss=loss,
            n_components=k,
            select=select,
            device=device,
            dtype=dtype,
            random_state=random_state,
        )
        return cls.from_results(analyzer.alignment()).plot(ax)

    @classmethod
    def from_results(
        cls,
        tables: Alignment | Sequence[Alignment],
        *,
        iterations: Any = None,
        seeds: Any = None,
    ) -> AlignmentDisplay:
        """Take what the analyzer has computed; nothing is drawn yet.

        Parameters
        ----------
        tables : Alignment or sequence of them
            Of :meth:`flatmin.NoiseCovarianceAnalyzer.alignment`, with the same k. One
            gives the heat map, several give the curves too.
        iterations : array-like of shape (n_tables,), default=None
            Where each of several was computed.
        seeds : array-like of shape (n_tables,), default=None
            The run that each belongs to. None: all to one.

        Returns
        -------
        AlignmentDisplay
            Its heat map is that of the last table.

        Raises
        ------
        TypeError
            If something else was given.
        ValueError
            If the tables, iterations and seeds do not fit together, or what should be
            drawn is not defined, as for a subset.
        """
        several = [tables] if isinstance(tables, Alignment) else tables
        if not isinstance(several, Sequence) or isinstance(several, str):
            raise TypeError(
                "tables must be an Alignment, or a list of them. Got "
                f"{type(tables).__name__}."
            )
        for table in several:
            if not isinstance(table, Alignment):
                raise TypeError(
                    "tables must be Alignments, which "
                    f"NoiseCovarianceAnalyzer.alignment() returns. Got {table!r}."
                )
        sizes = {(len(table.pairs), table.n_params) for table in several}
        if len(sizes) != 1:
            raise ValueError(
                "All tables must have the same k and D. Got "
                f"(k, D) in {sorted(sizes) or 'no tables'}."
            )
        ((k, n_params),) = sizes
        last = several[-1].inner_products
        check_drawable(several[-1], last, "Inner products")
        if iterations is None:
            if seeds is not None:
                raise ValueError("seeds come with iterations. Got iterations=None.")
            if len(several) > 1:
                raise ValueError(
                    f"Got {len(several)} tables and iterations=None; pass the "
                    "iteration at which each was computed."
                )
            return cls(last, k=k, n_params=n_params)
        iterations = to_array("iterations", iterations, (None,))
        seeds = np.zeros(len(several), int) if seeds is None else seeds
        if isinstance(seeds, str) or not hasattr(seeds, "__len__"):
            raise TypeError(f"seeds must be a list of the runs. Got {seeds!r}.")
        if not len(iterations) == len(seeds) == len(several):
            raise ValueError(
                "There must be one iteration, and one seed, for each table. Got "
                f"{len(several)} tables, {len(iterations)} iterations and "
                f"{len(seeds)} seeds."
            )
        rows = [
            {"seed": seed, "iteration": iteration}
            | {f"cosine_{i}": value for i, value in table.pairs["cosine"].items()}
            | {"residual": table["projection residual"]}
            for table, iteration, seed in zip(several, iterations, seeds, strict=True)
        ]
        history = pd.DataFrame(rows)
        for name in ("cosine_1", "residual"):
            check_drawable(several[-1], history[name], f"The column {name!r}")
        return cls(last, history=history, k=k, n_params=n_params)

    def baseline(self) -> float:
        """Return k(1 - k/D), the residual of random subspaces.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If k or D is missing.
        """
        if self.k is None or self.n_params is None:
            raise ValueError(
                "The baseline k(1 - k/D) needs k and n_params. Got "
                f"k={self.k} and n_params={self.n_params}."
            )
        return random_projection_residual(self.k, self.n_params)

    def plot(
        self,
        ax: Any = None,
        *,
        kind: str | None = None,
        n_cosines: int = 3,
        spread: str = "range",
    ) -> AlignmentDisplay:
        """Draw the heat map, or the curves.

        Parameters
        ----------
        ax : matplotlib Axes or pair of them, default=None
            None makes a figure; a single one is cut up for the curves, two panels.
        kind : {"heatmap", "curves"}, default=None
            None is the curves, where there are.
        n_cosines : int, default=3
            Draw \\|uᵢᵀvᵢ\\| for i up to this.
        spread : {"range", "sd", "ci"}, default="range"
            What bands over seeds show: all seeds, one standard deviation (ddof 1) about
            the mean, or its 95 % t interval.

        Returns
        -------
        AlignmentDisplay

        Raises
        ------
        ValueError
            If what should be drawn is missing.
        """
        if kind is None:
            kind = "heatmap" if self.history is None else "curves"
        check_known("kind", kind, ("heatmap", "curves"))
        check_band(spread)
        n_cosines = check_count("n_cosines", n_cosines)
        if kind == "heatmap":
            if self.inner_products is None:
                raise ValueError("The heat map needs inner_products. Got None.")
            if not np.isfinite(np.asarray(self.inner_products, float)).any():
                raise ValueError("The heat map needs numbers. Got NaN alone.")
            self.axes_ = make_axes(ax, 1)
            self.figure_ = self.axes_[0].figure
            self._draw_heatmap(self.axes_[0])
            return self
        names = self._check_history(n_cosines)
        baseline = self.baseline()
        self.axes_ = make_axes(ax, 2, vertical=True)
        self.figure_ = self.axes_[0].figure
        self._draw_curves(names, baseline, spread)
        return self

    def _check_history(self, n_cosines: int) -> list[str]:
        """Return the columns of cosines to draw."""
        if self.history is None:
            raise ValueError(
                "Curves need a history. Got None; pass several tables and their "
                "iterations to from_results."
            )
        names = [f"cosine_{i}" for i in range(1, n_cosines + 1)]
        names = [name for name in names if name in self.history]
        missing = {"iteration", "residual"} - set(self.history)
        if missing or not names:
            raise ValueError(
                "history must have the columns iteration, residual and cosine_1. Got "
                f"{', '.join(map(str, self.history))}."
            )
        for name in (*names, "residual"):
            if not np.isfinite(self.history[name]).any():
                raise ValueError(f"{name!r} must have a number. Got NaN alone.")
        return names

    def _draw_heatmap(self, ax: Any) -> None:
        import seaborn as sns

        values = np.asarray(self.inner_products, float)
        rows, columns = values.shape
        self.image_ = ax.imshow(
            values,
            cmap=sns.color_palette("mako_r", as_cmap=True).with_extremes(bad="0.85"),
            vmin=0,
            vmax=1,
            extent=(0.5, columns + 0.5, rows + 0.5, 0.5),
        )
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.set(xlabel=r"$v_j$ of $\Sigma$, rank $j$", ylabel=r"$u_i$ of $H$, rank $i$")
        self.colorbar_ = ax.figure.colorbar(self.image_, ax=ax)
        unknown = "" if np.isfinite(values).all() else ", grey: not defined"
        self.colorbar_.set_label(rf"$|u_i^\top v_j|${unknown}")
        tidy_axes(ax, spines=True, colorbar=self.colorbar_)

    def _draw_curves(self, names: list[str], baseline: float, spread: str) -> None:
        upper, lower = self.axes_
        *styles, last = line_styles(len(names) + 1)
        self.cosine_lines_ = []
        for i, (name, look) in enumerate(zip(names, styles, strict=True), 1):
            curve = band(self.history, name, spread)
            label = rf"$|u_{{{i}}}^\top v_{{{i}}}|$"
            (line,) = upper.plot(curve["mean"], **look, label=label)
            upper.fill_between(
                curve.index, curve["low"], curve["high"], color=look["color"], alpha=0.2
            )
            self.cosine_lines_.append(line)
        upper.set(ylabel="cosine", ylim=(0, 1.02))
        legend(upper)
        curve = band(self.history, "residual", spread)
        label = r"$e=k-\|U^\top V\|_F^2$"
        (self.residual_line_,) = lower.plot(curve["mean"], **last, label=label)
        lower.fill_between(
            curve.index, curve["low"], curve["high"], color=last["color"], alpha=0.2
        )
        self.baseline_ = lower.axhline(
            baseline, color="0.4", linestyle=":", label=r"random, $k(1-k/D)$"
        )
        lower.set(xlabel="iteration", ylabel="residual $e$", ylim=(0, 1.05 * self.k))
        legend(lower)
        self.figure_.align_ylabels(self.axes_)
        for ax in self.axes_:
            tidy_axes(ax)
