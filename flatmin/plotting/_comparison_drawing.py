"""How a comparison looks: end points with their means, and differences as a forest.

Each function draws one panel and returns its artists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from flatmin.plotting._figure import (
    LABELS,
    legend,
    line_styles,
    panel_size,
    scaled,
    tidy_axes,
)

__all__ = ["draw_differences", "draw_ends"]

_MARKERS = "osD^vPX*<>"
# Mark and filling of the differences in each phase, and what legends call it.
_PHASES = {
    "noise": ("o", False, "with the noise"),
    "quench": ("o", True, "quenched"),
    "quench_loss": ("D", True, "at one loss"),
}


def label_of(column: str) -> str:
    """Return how an axis calls a column."""
    return LABELS.get(column, column.replace("_", " "))


def draw_ends(
    ax: Any, points: pd.DataFrame, styles: dict[str, dict[str, Any]], title: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw a mark for each unit, and a large one for the mean of each method.

    Parameters
    ----------
    ax : matplotlib Axes
    points : pandas.DataFrame
        Two columns, of the x and the y axis, indexed by method and seed.
    styles : dict of str to dict
        Colours by method.
    title : str
        Of the legend.

    Returns
    -------
    marks : dict of str to matplotlib Line2D
        The means.
    unit_marks : dict of str to matplotlib Line2D
    """
    marks, unit_marks = {}, {}
    sizes = points.groupby(level="method").size()
    drawn = [name for name in styles if name in sizes.index]
    for i, name in enumerate(drawn):
        color, marker = styles[name]["color"], _MARKERS[i % len(_MARKERS)]
        own = points.loc[name].to_numpy()
        mean = own.mean(axis=0)
        if len(own) > 1:
            for unit in own:
                ax.plot(*zip(mean, unit, strict=True), color=color, lw=0.8, alpha=0.4)
        (unit_marks[name],) = ax.plot(
            *own.T,
            marker,
            color=color,
            markersize=scaled(ax, 3.5),
            alpha=0.6,
            markeredgewidth=0,
        )
        # How many of the seeds came to this end, where some did not.
        few = f" ({len(own)} of {sizes.max()})" if len(own) < sizes.max() else ""
        (marks[name],) = ax.plot(
            *mean[:, None],
            marker,
            color=color,
            markersize=scaled(ax, 9),
            markeredgecolor="white",
            linestyle="none",
            label=f"{name}{few}",
            zorder=3,
        )
    ax.margins(0.08)
    x, y = points.columns
    ax.set(xlabel=label_of(x), ylabel=label_of(y))
    legend(ax, title=title)
    _space_ticks(ax)
    tidy_axes(ax)
    return marks, unit_marks


def draw_differences(
    ax: Any,
    table: pd.DataFrame,
    *,
    baseline: str,
    confidence: float,
    named: bool,
    with_legend: bool,
) -> dict[tuple[str, str], Any]:
    """Draw differences from a baseline with their intervals, a row a method.

    Parameters
    ----------
    ax : matplotlib Axes
    table : pandas.DataFrame
        Of one column, without the baseline: phase, method, difference, low and high.
    baseline : str
    confidence : float
    named : bool
        Whether the rows are named here.
    with_legend : bool

    Returns
    -------
    dict of (phase, method) to matplotlib Line2D
    """
    methods = list(dict.fromkeys(table["method"]))
    phases = [phase for phase in _PHASES if phase in set(table["phase"])]
    shifts = np.linspace(0.2, -0.2, len(phases)) if len(phases) > 1 else [0.0]
    marks = {}
    for look, phase, shift in zip(
        line_styles(len(phases)), phases, shifts, strict=True
    ):
        marker, filled, title = _PHASES[phase]
        color, label = look["color"], title if len(phases) > 1 else None
        for row in table[table["phase"] == phase].to_dict("records"):
            if not np.isfinite(row["difference"]):
                continue
            height = len(methods) - methods.index(row["method"]) + shift
            if np.isfinite(row["low"]):
                ends = [row["low"], row["high"]]
                ax.plot(ends, [height, height], color=color, linewidth=1.4)
            (mark,) = ax.plot(
                row["difference"],
                height,
                marker,
                color=color,
                markerfacecolor=color if filled else "white",
                markersize=scaled(ax, 5),
                linestyle="none",
                label=label,
            )
            marks[phase, row["method"]] = mark
            label = None
    _space_ticks(ax)
    ax.axvline(0, color="0.5", linewidth=0.8, zorder=0)
    ax.set(
        yticks=range(len(methods), 0, -1),
        yticklabels=methods if named else [],
        ylim=(0.4, len(methods) + 0.6),
    )
    (column,) = table["column"].unique()
    ax.set_xlabel(f"{label_of(column)}, less that of {baseline}")
    if with_legend:
        n = table["n"].min(), table["n"].max()
        pairs = f"{n[0]}" if n[0] == n[1] else f"{n[0]} to {n[1]}"
        text = f"{confidence:.0%} intervals, {pairs} pairs"
        if n[1] < 2:
            text = "one pair, no interval"
        if len(phases) > 1:
            legend(ax, title=text)
        else:
            ax.set_ylabel(text)
    tidy_axes(ax)
    return marks


def _space_ticks(ax: Any) -> None:
    """Take few ticks: numbers of many digits would run into each other."""
    ax.locator_params(axis="x", nbins=int(np.clip(1.2 * panel_size(ax)[0], 2, 6)))
