"""The numbers of a picture of eigenvalues, from what the analyzers have computed."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatmin._utils.numbers import check_positive
from flatmin.analysis import Alignment, SpectralDensity
from flatmin.plotting._undefined import check_drawable

__all__ = ["bulk_of", "count_of_outliers", "density_of_one", "display_numbers"]


def display_numbers(table: Any, spectrum: Any, width: float | None) -> dict[str, Any]:
    """Return the arguments of a SpectrumDisplay.

    Parameters
    ----------
    table : Alignment or None
    spectrum : SpectralDensity or None
    width : float or None

    Returns
    -------
    dict of str to object

    Raises
    ------
    TypeError
        If these are not such results.
    ValueError
        If there is none, the table has no eigenvalues, or it comes with the density of
        another matrix than H.
    """
    if table is None and spectrum is None:
        raise ValueError(
            "A SpectrumDisplay draws a table, a spectrum, or both. Got neither."
        )
    if table is not None and not isinstance(table, Alignment):
        raise TypeError(
            "table must be an Alignment, which "
            f"NoiseCovarianceAnalyzer.alignment() returns. Got {table!r}."
        )
    if width is not None:
        width = check_positive("width", width)
    numbers: dict[str, Any] = {}
    if table is not None:
        check_drawable(table, table.pairs[["hessian", "covariance"]], "Eigenvalues")
        numbers |= {
            "hessian_eigenvalues": table.pairs["hessian"].to_numpy(copy=True),
            "covariance_eigenvalues": table.pairs["covariance"].to_numpy(copy=True),
            "hessian_norm": table["‖H‖_F"],
            "covariance_norm": table["‖Σ‖_F"],
            "n_params": table.n_params,
        }
    if spectrum is None:
        return numbers
    if not isinstance(spectrum, SpectralDensity):
        raise TypeError(
            "spectrum must be a SpectralDensity, which "
            f"CurvatureAnalyzer.density() returns. Got {spectrum!r}."
        )
    if table is not None and spectrum.matrix != "hessian":
        raise ValueError(
            "The density beside the eigenvalues of H must be that of H. Got "
            f"that of the {spectrum.matrix}; draw it without the table."
        )
    if width is None:
        width = spectrum.default_width
    smooth = spectrum.to_frame(width=width)
    return numbers | {
        "grid": smooth["eigenvalue"].to_numpy(copy=True),
        "density": smooth["density"].to_numpy(copy=True),
        "density_stderr": smooth["density_stderr"].to_numpy(copy=True),
        "width": width,
        "matrix": spectrum.matrix,
        "n_params": spectrum.n_params,
    }


def density_of_one(n_params: int, width: float) -> float:
    """Return the largest smoothed density that one eigenvalue alone gives."""
    return float(1 / (n_params * width * np.sqrt(2 * np.pi)))


def bulk_of(grid: Any, density: Any, one: float) -> tuple[float, float]:
    """Return the interval around the mode where a density is above that of one."""
    grid, density = np.asarray(grid), np.asarray(density)
    mode = int(density.argmax())
    below = np.flatnonzero(density <= one)
    left, right = below[below < mode], below[below > mode]
    low = grid[left[-1]] if len(left) else grid[0]
    return float(low), float(grid[right[0]] if len(right) else grid[-1])


def count_of_outliers(n_outliers: int, n_known: int, n_params: int) -> str:
    """Return how many outliers there are, as a legend says it.

    Parameters
    ----------
    n_outliers : int
        Of the eigenvalues that are known.
    n_known : int
        The largest ones.
    n_params : int
        How many there are.

    Returns
    -------
    str

    Examples
    --------
    >>> count_of_outliers(2, 3, 100), count_of_outliers(3, 3, 100)
    ('2 outliers', 'at least 3 outliers')
    """
    # Those after an eigenvalue inside the bulk are no outliers.
    beyond = n_outliers == n_known < n_params
    return f"at least {n_outliers} outliers" if beyond else f"{n_outliers} outliers"
