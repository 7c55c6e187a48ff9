"""Axes, colours and sizes of all Displays, set on each drawing and never globally."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import numpy as np

from flatmin._utils.messages import naming

__all__ = [
    "LABELS",
    "check_axes",
    "legend",
    "line_styles",
    "make_axes",
    "make_solid_axes",
    "panel_size",
    "scaled",
    "tidy_axes",
]

# What axes call the columns of a run.
LABELS = {
    "loss": r"loss $L(\theta)$",
    "valid_loss": "validation loss",
    "test_loss": "test loss",
    "train_score": "training score",
    "valid_score": "validation score",
    "test_score": "test score",
    "sharpness": r"sharpness $\mathbb{E}\Delta{}L$",
    "end_sharpness": r"sharpness $\mathbb{E}\Delta{}L$",
    "max_eigenvalue": r"$\lambda_1$ of $H$",
    "gradient_norm": r"$\|g_0\|$",
    "noise_norm": r"$\sqrt{\mathrm{Tr}\,C}$",
}

# Colours of seaborn's "colorblind" without yellow, grey and pink, which are faint on
# white.
_STRONG = (0, 1, 2, 3, 4, 9, 5)
_DASHES = ("-", "--", "-.", ":")

# Inches of a panel below which rcParams' sizes of text are too large for it.
_FULL_WIDTH, _FULL_HEIGHT = 2.8, 1.5
_SMALLEST = 0.62

# A legend takes so much of the height at most: of the figure, or of its own panel.
_ABOVE, _INSIDE = 0.35, 0.6


def check_axes(ax: Any, n: int) -> None:
    """Raise if n panels cannot be drawn there; asked before anything is computed.

    Parameters
    ----------
    ax : matplotlib Axes, array-like of n of them, or None
    n : int

    Raises
    ------
    TypeError
        If ``ax`` holds something else.
    ValueError
        If there are not n, or one outside of any grid would have to be cut up.
    """
    from matplotlib.axes import Axes

    if ax is None:
        return
    with naming("ax"):
        given = np.array(ax, dtype=object, ndmin=1).ravel()
    for one in given:
        if not isinstance(one, Axes):
            raise TypeError(f"ax must hold matplotlib Axes. Got {one!r}.")
    if len(given) == n:
        return
    if len(given) != 1:
        raise ValueError(
            f"ax must fit {n} panels. Got {len(given)} axes; pass {n}, or one that is "
            "cut up."
        )
    if given[0].get_subplotspec() is None:
        raise ValueError(
            f"ax must be {n} axes, one for each panel: one that was placed by hand "
            f"cannot be cut up. Pass {n} axes, or one made by plt.subplots."
        )


def make_axes(ax: Any, n: int, *, vertical: bool = False) -> np.ndarray:
    """Return n axes to draw in.

    Parameters
    ----------
    ax : matplotlib Axes, array-like of n of them, or None
        None makes a figure. One for several panels is cut up, as scikit-learn does.
    n : int
        Number of panels.
    vertical : bool, default=False
        One above the other, with a common horizontal axis.

    Returns
    -------
    ndarray of shape (n,) of matplotlib Axes
    """
    import matplotlib.pyplot as plt

    check_axes(ax, n)
    rows, columns = (n, 1) if vertical else (1, n)
    if ax is None:
        figure = plt.figure(layout="constrained")
        grid = figure.add_gridspec(rows, columns)
    else:
        given = np.array(ax, dtype=object, ndmin=1).ravel()
        if len(given) == n:
            return given
        given[0].set_axis_off()
        figure = given[0].figure
        grid = given[0].get_subplotspec().subgridspec(rows, columns)
    axes: list[Any] = []
    for cell in range(n):
        share = axes[0] if vertical and axes else None
        axes.append(figure.add_subplot(grid[cell], sharex=share))
    if vertical:
        for upper in axes[:-1]:
            upper.tick_params(labelbottom=False)
    return np.array(axes, dtype=object)


def make_solid_axes(ax: Any) -> np.ndarray:
    """Return one axes of three dimensions.

    Parameters
    ----------
    ax : matplotlib Axes3D, array-like of one of them, or None
        None makes a figure.

    Returns
    -------
    ndarray of shape (1,) of matplotlib Axes3D

    Raises
    ------
    ValueError
        If it has two dimensions.
    """
    import matplotlib.pyplot as plt

    check_axes(ax, 1)
    if ax is None:
        # A layout leaves no room for the labels of the upright axis.
        ax = plt.figure().add_subplot(projection="3d")
    given = np.array(ax, dtype=object, ndmin=1).ravel()
    if given[0].name != "3d":
        raise ValueError(
            "ax must have three dimensions for a surface. Got one with two; make it "
            "with plt.subplots(subplot_kw={'projection': '3d'})."
        )
    return given


def line_styles(n: int) -> list[dict[str, Any]]:
    """Return colour and dashes of n lines: safe for the colour-blind, all different.

    Parameters
    ----------
    n : int
        At most 28.

    Returns
    -------
    list of dict

    Raises
    ------
    ValueError
        If there are more lines than can be told apart.
    """
    import seaborn as sns

    if n > len(_STRONG) * len(_DASHES):
        raise ValueError(
            f"At most {len(_STRONG) * len(_DASHES)} lines can be told apart in one "
            f"picture. Got {n}; draw fewer at a time."
        )
    palette = sns.color_palette("colorblind")
    return [
        {
            "color": palette[_STRONG[i % len(_STRONG)]],
            "linestyle": _DASHES[i // len(_STRONG)],
        }
        for i in range(n)
    ]


def legend(ax: Any, *, title: str | None = None, inside: bool = False) -> Any:
    """Put the legend above the data where a layout makes room for it.

    Parameters
    ----------
    ax : matplotlib Axes
        With labelled artists.
    title : str, default=None
        Above the entries.
    inside : bool, default=False
        In the emptiest corner instead, for drawings that leave one.

    Returns
    -------
    matplotlib Legend
    """
    handles, labels = ax.get_legend_handles_labels()
    figure = ax.get_figure(root=True)
    above = not inside and figure.get_layout_engine() is not None
    width, height = panel_size(ax)
    room = _ABOVE * figure.get_size_inches()[1] if above else _INSIDE * height
    full = scaled(ax, _points("legend.fontsize"))
    for shrink in (1.0, 0.9, 0.8, 0.7, 0.6):
        size = full * shrink
        lines, columns = _folded_labels(labels, width * 72 / size)
        columns = columns if above else 1
        rows = sum(1 + line.count("\n") for line in lines) / columns + bool(title)
        if rows * 1.5 * size / 72 <= room:
            break
    style: dict[str, Any] = {
        "title": title,
        "fontsize": size,
        "title_fontsize": size,
        "handlelength": 1.8,
    }
    if not above:
        return ax.legend(
            handles, lines, loc="best", frameon=not inside, framealpha=0.8, **style
        )
    return ax.legend(
        handles,
        lines,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        alignment="left",
        columnspacing=1.2,
        labelspacing=0.3,
        frameon=False,
        **style,
    )


def tidy_axes(ax: Any, *, spines: bool = False, colorbar: Any = None) -> None:
    """Take away superfluous lines and fit the text to the size of the panel.

    Parameters
    ----------
    ax : matplotlib Axes
    spines : bool, default=False
        Keep the frame, as around pictures.
    colorbar : matplotlib Colorbar, default=None
        Gets text of the same size, and no frame.
    """
    import seaborn as sns

    if not spines:
        sns.despine(ax=ax)
    size, ticks = _points("axes.labelsize"), scaled(ax, _points("xtick.labelsize"))
    dpi = ax.get_figure(root=True).dpi
    for axis, room in zip((ax.xaxis, ax.yaxis), panel_size(ax), strict=True):
        axis.label.set_size(scaled(ax, size))
        _wrap(axis.label, room * dpi)
        axis.get_offset_text().set_size(ticks)
    ax.tick_params(which="both", labelsize=ticks)
    if colorbar is not None:
        colorbar.outline.set_visible(False)
        colorbar.ax.yaxis.label.set_size(scaled(ax, size))
        colorbar.ax.tick_params(which="both", labelsize=ticks)


def scaled(ax: Any, points: float) -> float:
    """Return a size of text or markers, less in small panels.

    Parameters
    ----------
    ax : matplotlib Axes
    points : float

    Returns
    -------
    float
    """
    width, height = panel_size(ax)
    scale = np.clip(min(width / _FULL_WIDTH, height / _FULL_HEIGHT), _SMALLEST, 1)
    return float(points * scale)


def _folded_labels(labels: list[str], room: float) -> tuple[list[str], int]:
    """Return folded labels and the columns that fit in, in ems."""
    # A character is about 0.55 wide; handle and gaps take 4.
    lines = [_fold(label, int((room - 3) / 0.55)) for label in labels]
    longest = max(_visible_length(part) for line in lines for part in line.split("\n"))
    columns = int(room // (0.55 * longest + 4))
    return lines, min(max(columns, 1), len(labels))


def _fold(text: str, width: int) -> str:
    """Break between words what has more visible characters than width."""
    if _visible_length(text) <= width:
        return text
    width = max(1, width)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def _visible_length(text: str) -> int:
    """Return about how many characters mathtext shows."""
    bare = re.sub(r"[${}^_]|\\(mathrm|mathbb|,)", "", text)
    return len(re.sub(r"\\[a-zA-Z]+", "x", bare))


def _wrap(label: Any, room: float) -> None:
    """Break a label between words if it is longer than its axis, in pixels."""
    text = label.get_text()
    length = max(label.get_window_extent().size)
    if length > room:
        label.set_text(_fold(text, int(_visible_length(text) * room / length)))


def panel_size(ax: Any) -> np.ndarray:
    """Return width and height in inches, before any layout.

    Parameters
    ----------
    ax : matplotlib Axes

    Returns
    -------
    ndarray of shape (2,)
    """
    figure = ax.get_figure(root=False)  # a subfigure, where the Axes are in one
    size: np.ndarray = ax.get_position().size * figure.bbox.size / figure.dpi
    return size


def _points(name: Any) -> float:
    """Return a font size of the user's rcParams in points."""
    import matplotlib as mpl
    from matplotlib.font_manager import FontProperties

    return FontProperties(size=mpl.rcParams[name]).get_size_in_points()
