"""The density of a spectrum as an analyzer returns it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from flatmin import linalg
from flatmin._utils.arrays import to_array
from flatmin._utils.results import html_table
from flatmin.analysis._results import _numpy, _table

__all__ = ["SpectralDensity"]


@dataclass(frozen=True, repr=False, eq=False)
class SpectralDensity:
    """The eigenvalues of a matrix of the risk as a distribution.

    Each probe has nodes and weights of its own. See
    :class:`flatmin.linalg.SpectralDensity` for what the errors are.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import CurvatureAnalyzer, NoisyDiffusionClassifier
    >>> clf = NoisyDiffusionClassifier(max_iter=100).fit(*load_iris(return_X_y=True))
    >>> analyzer = CurvatureAnalyzer(clf, random_state=0)
    >>> density = analyzer.density()
    >>> density.moment(1)[0] > 0
    True
    """

    matrix: str
    nodes: np.ndarray  # (n_probes, n_steps), rising
    weights: np.ndarray  # (n_probes, n_steps), rows sum to one
    exact: bool  # all eigenvalues as one probe
    n_matvecs: int
    _density: linalg.SpectralDensity = field(compare=False)

    # (spectrum, ax, width) -> Display; flatmin.plotting, the floor above, sets it.
    _draw: ClassVar[Callable[..., Any]]

    @classmethod
    def wrap(cls, matrix: str, result: linalg.SpectralDensity) -> SpectralDensity:
        """Bring a result of :func:`flatmin.linalg.spectral_density` to NumPy.

        Parameters
        ----------
        matrix : str
            Its name.
        result : flatmin.linalg.SpectralDensity

        Returns
        -------
        SpectralDensity
        """
        nodes, weights = result.nodes.cpu(), result.weights.cpu()
        here = replace(result, nodes=nodes, weights=weights)
        return cls(
            matrix,
            nodes.numpy(),
            weights.numpy(),
            result.exact,
            result.n_matvecs,
            here,
        )

    @property
    def n_params(self) -> int:
        """D, or the number of those selected."""
        return self._density.size

    def plot(self, ax: Any = None, *, width: float | None = None) -> Any:
        """Draw the density on a log scale.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        width : float, default=None
            Of the smoothing, in units of the eigenvalues; None is ``default_width``.

        Returns
        -------
        flatmin.plotting.SpectrumDisplay
        """
        if not hasattr(type(self), "_draw"):
            # plotting lies above: when it loads it gives its pictures to the results.
            import_module("flatmin.plotting")
        return type(self)._draw(self, ax, width)

    @property
    def default_width(self) -> float:
        """A hundredth of the range of the nodes, or of their size if it is 0."""
        return self._density.default_width

    def moment(self, p: int) -> tuple[float, float]:
        """Return (1/d) Tr Aᵖ and its standard error.

        Parameters
        ----------
        p : int
            At least 0.

        Returns
        -------
        value : float
        stderr : float
        """
        value, stderr = self._density.moment(p)
        return float(value), float(stderr)

    def to_frame(self, grid: Any = None, *, width: float | None = None) -> pd.DataFrame:
        """Return the smoothed density and the share of eigenvalues below.

        Parameters
        ----------
        grid : array-like of shape (n,), default=None
            Where; None is 500 points that cover the spectrum.
        width : float, default=None
            Standard deviation of the normal density that smooths, in units of the
            eigenvalues; None is ``default_width``.

        Returns
        -------
        pandas.DataFrame
            Columns eigenvalue, density, density_stderr, cumulative and
            cumulative_stderr.
        """
        if width is None:
            width = self.default_width
        if grid is None:
            reach = 4 * width
            low, high = self.nodes.min() - reach, self.nodes.max() + reach
            grid = np.linspace(low, high, 500)
        grid = to_array("grid", grid, (None,))
        columns = {"eigenvalue": grid}
        points = torch.as_tensor(grid)
        for name, (value, stderr) in {
            "density": self._density.density(points, width),
            "cumulative": self._density.cumulative(points),
        }.items():
            columns[name], columns[f"{name}_stderr"] = _numpy(value), _numpy(stderr)
        return pd.DataFrame(columns)

    def _quantiles(self) -> pd.DataFrame:
        shares = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
        order = np.argsort(self.nodes, axis=None)
        below = np.cumsum(self.weights.ravel()[order]) / len(self.nodes)
        # Rounding leaves the last sum a little below one.
        at = np.minimum(np.searchsorted(below, shares), below.size - 1)
        return pd.DataFrame(
            {"eigenvalue": self.nodes.ravel()[order][at]},
            pd.Index([f"{share:.1%}" for share in shares], name="share below"),
        )

    def _repr_html_(self) -> str | None:
        return html_table(self._quantiles())

    def __repr__(self) -> str:
        how = "exact" if self.exact else f"{len(self.nodes)} probes"
        title = f"spectrum of the {self.matrix} ({how}, {self.n_matvecs} products)"
        return f"{title}\n{_table(self._quantiles())}"
