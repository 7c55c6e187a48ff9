"""How a section of the loss looks: a curve, or contours with what is marked on them.

Each function draws the arrays of a display on axes and returns its artists by name.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from flatmin.plotting._figure import legend, line_styles, scaled, tidy_axes

__all__ = ["draw_line", "draw_plane", "draw_surface"]


def draw_line(ax: Any, display: Any, loss: np.ndarray) -> dict[str, Any]:
    """Draw a section along one direction.

    Parameters
    ----------
    ax : matplotlib Axes
    display : LandscapeDisplay
    loss : ndarray of shape (n,)

    Returns
    -------
    dict of str to matplotlib artist
    """
    look, other = line_styles(2)
    artists = {"line_": ax.plot(display.x, loss, **look)[0]}
    if display.points is not None:
        ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    if display.trajectory is not None:
        steps = np.asarray(display.trajectory)[:, 0]
        (artists["trajectory_line_"],) = ax.plot(
            steps,
            np.full(len(steps), 0.02),
            "|",
            transform=ax.get_xaxis_transform(),
            color=other["color"],
            label=_trajectory_label(display.share, "line"),
        )
        legend(ax)
    ax.set(xlabel=display.labels[0], ylabel=_quantity(display))
    tidy_axes(ax)
    return artists


def draw_plane(
    ax: Any, display: Any, loss: np.ma.MaskedArray, log: bool
) -> dict[str, Any]:
    """Draw a section along two directions.

    Parameters
    ----------
    ax : matplotlib Axes
    display : LandscapeDisplay
    loss : MaskedArray of shape (m, n)
        What is masked stays white.
    log : bool
        Colours and levels on a logarithmic scale.

    Returns
    -------
    dict of str to matplotlib artist
    """
    import seaborn as sns
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = loss.min(), loss.max()
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-6  # a flat plane has one colour
    spaced = np.geomspace if log else np.linspace
    levels = spaced(low, high, 25)
    levels[[0, -1]] = low, high  # rounding must not leave the ends out
    contours = ax.contourf(
        display.x,
        display.y,
        loss,
        levels,
        norm=(LogNorm if log else Normalize)(low, high),
        cmap=sns.color_palette("mako", as_cmap=True),
    )
    lines = levels[3:-1:3]
    ax.contour(display.x, display.y, loss, lines, colors="white", linewidths=0.4)
    colorbar = ax.figure.colorbar(
        contours,
        ax=ax,
        ticks=LogLocator(subs=(1, 2, 5)) if log else MaxNLocator(5),
        format="%g",
    )
    colorbar.set_label(_quantity(display))
    colorbar.ax.minorticks_off()
    artists = {"contours_": contours, "colorbar_": colorbar}
    if display.trajectory is not None:
        label = _trajectory_label(display.share, "plane")
        artists["trajectory_line_"] = _draw_path(ax, display.trajectory, label)
    if display.points is not None:
        _mark_solutions(ax, np.asarray(display.points))
    ax.set(xlabel=display.labels[0], ylabel=display.labels[1])
    if display.equal:
        ax.set_aspect("equal")
    tidy_axes(ax, spines=True, colorbar=colorbar)
    return artists


def draw_surface(
    ax: Any, display: Any, loss: np.ma.MaskedArray, log: bool
) -> dict[str, Any]:
    """Draw a section along two directions as a surface.

    Parameters
    ----------
    ax : matplotlib Axes3D
    display : LandscapeDisplay
    loss : MaskedArray of shape (m, n)
        What is masked is a hole.
    log : bool
        Heights are powers of 10.

    Returns
    -------
    dict of str to matplotlib artist
    """
    import seaborn as sns

    height = (np.ma.log10(loss) if log else loss).filled(np.nan)
    x, y = np.meshgrid(display.x, display.y)
    surface = ax.plot_surface(
        x,
        y,
        height,
        cmap=sns.color_palette("mako", as_cmap=True),
        rcount=len(display.y),
        ccount=len(display.x),
        linewidth=0,
        alpha=0.85,
        vmin=np.nanmin(height),
        vmax=np.nanmax(height),
    )
    artists = {"surface_": surface}
    on_it = RegularGridInterpolator(
        (np.asarray(display.y), np.asarray(display.x)),
        height,
        bounds_error=False,
        fill_value=np.nan,
    )
    if display.trajectory is not None:
        path = np.asarray(display.trajectory)
        (artists["trajectory_line_"],) = ax.plot(
            *path.T,
            on_it(path[:, ::-1]),
            color=line_styles(4)[1]["color"],
            linewidth=1.4,
            marker="o",
            markersize=scaled(ax, 2.5),
            markevery=_every(len(path)),
            zorder=10,
            label=_trajectory_label(display.share, "plane"),
        )
        ax.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            fontsize=scaled(ax, 9),
            frameon=False,
        )
    if display.points is not None:
        points = np.asarray(display.points)
        ax.plot(
            *points.T, on_it(points[:, ::-1]), "w*", markeredgecolor="0.2", zorder=11
        )
    _label_surface(ax, display, log)
    return artists


def _label_surface(ax: Any, display: Any, log: bool) -> None:
    name = _quantity(display)
    # There is no room for the curvature along an axis.
    first, second = (label.partition(",")[0] for label in display.labels)
    ax.set(xlabel=first, ylabel=second)
    ax.set_zlabel(rf"$\log_{{10}}$ of {name}" if log else name)
    # In a small panel labels move up to the axes.
    roomy = scaled(ax, 1) == 1
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.label.set_size(scaled(ax, 10))
        axis.labelpad = 6 if roomy else -8
        axis.set_tick_params(labelsize=scaled(ax, 8), pad=2 if roomy else -3)
        axis.get_major_locator().set_params(nbins=4)


def _quantity(display: Any) -> str:
    return r"loss $L$" if display.quantity == "loss" else str(display.quantity)


def _every(n: int) -> int:
    """Return how many steps a mark stands for: some thirty can be told apart."""
    return max(1, math.ceil(n / 30))


def _draw_path(ax: Any, trajectory: Any, label: str) -> Any:
    from matplotlib.patheffects import Normal, Stroke

    (line,) = ax.plot(
        *np.asarray(trajectory).T,
        color=line_styles(4)[1]["color"],
        linewidth=1.0,
        marker="o",
        markersize=scaled(ax, 2.5),
        markevery=_every(len(trajectory)),
        path_effects=[Stroke(linewidth=2.2, foreground="white"), Normal()],
        label=label,
    )
    start = np.asarray(trajectory)[0]
    color = line.get_color()
    ax.plot(*start, "o", color="white", markersize=scaled(ax, 6), markeredgecolor=color)
    legend(ax)
    return line


def _mark_solutions(ax: Any, points: np.ndarray) -> None:
    from matplotlib.patheffects import Normal, Stroke

    ax.plot(*points.T, "w*", markersize=8, markeredgecolor="0.2")
    if len(points) == 1:
        return
    for i, point in enumerate(points, 1):
        ax.annotate(
            rf"$\theta_{i}$",
            point,
            (5, 5),
            textcoords="offset points",
            color="white",
            path_effects=[Stroke(linewidth=2, foreground="0.2"), Normal()],
        )


def _trajectory_label(share: float | None, section: str) -> str:
    if share is None or not np.isfinite(share):
        return "trajectory"
    return f"trajectory, {share:.0%} of its variance in the {section}"
