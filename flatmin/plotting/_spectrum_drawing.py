"""How a spectrum looks: the leading eigenvalues as stems, the density of all.

Each function draws one panel and returns its artists.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flatmin.plotting._figure import legend, line_styles, scaled, tidy_axes

__all__ = ["draw_density", "draw_eigenvalues"]

_SYMBOLS = {
    "hessian": "$H$",
    "ggn": "$G$",
    "fisher": "the Fisher matrix",
    "empirical_fisher": "the empirical Fisher matrix",
}


def draw_eigenvalues(
    ax: Any, series: list[np.ndarray], *, normalised: bool
) -> list[Any]:
    """Draw the leading eigenvalues of H, and of Σ if there are, by rank.

    Parameters
    ----------
    ax : matplotlib Axes
    series : list of ndarray of shape (k,)
    normalised : bool
        They are divided by Frobenius norms, so that the scale is linear.

    Returns
    -------
    list of matplotlib StemContainer
    """
    names = [r"$H$, $\lambda_i$", r"$\Sigma$, $\gamma_i$"]
    offsets = [-0.15, 0.15] if len(series) == 2 else [0.0]
    log = not normalised and all((values > 0).all() for values in series)
    floor = min(values.min() for values in series) / 2 if log else 0.0
    drawn = []
    styles = zip(line_styles(2), "os", names, strict=True)
    for values, offset, (look, marker, name) in zip(
        series, offsets, styles, strict=False
    ):
        ranks = np.arange(1, len(values) + 1)
        stems = ax.stem(ranks + offset, values, basefmt=" ", bottom=floor, label=name)
        stems.stemlines.set(color=look["color"], linewidth=1.0, alpha=0.6)
        stems.markerline.set(
            color=look["color"], marker=marker, markersize=scaled(ax, 4)
        )
        drawn.append(stems)
    if log:
        ax.set_yscale("log")
        ax.set_ylim(bottom=floor)
    ax.set_xlim(0.3, max(map(len, series)) + 0.7)
    ax.xaxis.get_major_locator().set_params(integer=True)
    unit = r"eigenvalue / $\|\cdot\|_F$" if normalised else "eigenvalue"
    ax.set(xlabel="rank $i$", ylabel=unit)
    legend(ax, inside=True)
    tidy_axes(ax)
    return drawn


def draw_density(
    ax: Any,
    grid: np.ndarray,
    density: np.ndarray,
    outliers: np.ndarray,
    count: str | None,
    *,
    one: float,
    matrix: str,
) -> tuple[Any, Any]:
    """Draw the density of a matrix on a log scale, and mark the outliers.

    Parameters
    ----------
    ax : matplotlib Axes
    grid : ndarray of shape (n,)
    density : ndarray of shape (n,)
    outliers : ndarray of shape (n_outliers,)
        Eigenvalues.
    count : str or None
        How many there are; None where no eigenvalues are known.
    one : float
        The largest density that one eigenvalue alone gives.
    matrix : str
        Its name.

    Returns
    -------
    density_line : matplotlib Line2D
    outlier_marks : matplotlib Line2D
    """
    floor = one / 30  # a thirtieth of an eigenvalue: there is nothing below
    color, mark = (look["color"] for look in line_styles(4)[0:4:3])
    shown = np.maximum(density, floor)
    (line,) = ax.plot(grid, shown, color=color, linewidth=1.2)
    ax.fill_between(grid, floor, shown, color=color, alpha=0.2, linewidth=0)
    (marks,) = ax.plot(
        outliers,
        np.full(len(outliers), 4 * one),
        "v",
        color=mark,
        markersize=scaled(ax, 5),
        label=count,
    )
    ax.set_yscale("log")
    ax.set(
        ylim=(floor, 3 * density.max()),
        xlabel=rf"eigenvalue $\lambda$ of {_SYMBOLS.get(matrix, matrix)}",
        ylabel=r"density $p(\lambda)$",
    )
    if len(outliers):
        legend(ax)
    tidy_axes(ax)
    return line, marks
