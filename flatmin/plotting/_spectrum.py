"""The eigenvalues of H and Σ: the leading ones, and the distribution of all."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_count, check_flag, check_positive
from flatmin.analysis import (
    Alignment,
    CurvatureAnalyzer,
    NoiseCovarianceAnalyzer,
    SpectralDensity,
)
from flatmin.plotting._base import BaseDisplay
from flatmin.plotting._figure import check_axes, make_axes
from flatmin.plotting._models import fit_analyzer
from flatmin.plotting._spectrum_drawing import draw_density, draw_eigenvalues
from flatmin.plotting._spectrum_numbers import (
    bulk_of,
    count_of_outliers,
    density_of_one,
    display_numbers,
)

__all__ = ["SpectrumDisplay"]

_KINDS = ("both", "eigenvalues", "density")


class SpectrumDisplay(BaseDisplay):
    """Leading eigenvalues of H and Σ side by side, and the spectral density of H.

    Each may be there without the other.

    It is recommended to use :meth:`from_estimator` or :meth:`from_results`; the
    constructor takes the numbers as they are.

    The density (1/D) Σ δ(λ - λᵢ), smoothed by a normal density of standard deviation
    ``width``, stands on a log scale. Its bulk is the interval around the mode where it
    is above what one eigenvalue alone gives, 1/(D · width · √(2π)). Leading eigenvalues
    to the right of the bulk are outliers, and marked. Where all that are known are
    outliers, there may be more, and the legend says "at least".

    Parameters
    ----------
    hessian_eigenvalues : array-like of shape (k,), default=None
        Of H, the largest first. None with a density alone.
    covariance_eigenvalues : array-like of shape (k,), default=None
        Of Σ, divisor N, the largest first.
    hessian_norm : float, default=None
        ‖H‖_F, for normalised eigenvalues.
    covariance_norm : float, default=None
        ‖Σ‖_F.
    n_params : int, default=None
        D. It is needed with a density.
    grid : array-like of shape (n,), default=None
        Where the density of H is known, rising.
    density : array-like of shape (n,), default=None
    density_stderr : array-like of shape (n,), default=None
        Its standard error over random probes.
    width : float, default=None
        Of the smoothing, in units of the eigenvalues. It is needed with a density.
    matrix : str, default="hessian"
        Whose density it is.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One for each panel; ``ax_`` is the first.
    figure_ : matplotlib Figure
    stems_ : list of matplotlib StemContainer
        Of H and Σ, where eigenvalues are drawn.
    density_line_ : matplotlib Line2D
        Where the density is drawn.
    outlier_marks_ : matplotlib Line2D

    See Also
    --------
    flatmin.CurvatureAnalyzer : Gives eigenpairs and density.
    AlignmentDisplay : How the eigenvectors lie to each other.

    References
    ----------
    B. Ghorbani, S. Krishnan and Y. Xiao, "An investigation into neural net optimization
    via Hessian eigenvalue density", 2019, :doi:`10.48550/arXiv.1901.10159`.

    Examples
    --------
    >>> from flatmin.plotting import SpectrumDisplay
    >>> display = SpectrumDisplay([8.0, 6.0], hessian_norm=10.0)
    >>> display.normalised()[0]
    array([0.8, 0.6])
    """

    def __init__(
        self,
        hessian_eigenvalues=None,
        covariance_eigenvalues=None,
        *,
        hessian_norm=None,
        covariance_norm=None,
        n_params=None,
        grid=None,
        density=None,
        density_stderr=None,
        width=None,
        matrix="hessian",
    ):
        self.hessian_eigenvalues = hessian_eigenvalues
        self.covariance_eigenvalues = covariance_eigenvalues
        self.hessian_norm = hessian_norm
        self.covariance_norm = covariance_norm
        self.n_params = n_params
        self.grid = grid
        self.density = density
        self.density_stderr = density_stderr
        self.width = width
        self.matrix = matrix

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
        n_probes: int = 10,
        n_steps: int = 80,
        width: float | None = None,
        select: Any = None,
        device: Any = None,
        dtype: Any = None,
        random_state: Any = None,
        kind: str = "both",
        normalised: bool = True,
        ax: Any = None,
        **risk_options: Any,
    ) -> SpectrumDisplay:
        """Compute the spectra of a fitted model and draw them.

        It costs what :meth:`flatmin.NoiseCovarianceAnalyzer.alignment` and ``density``
        cost; hand results that are there already to :meth:`from_results`.

        Parameters
        ----------
        estimator : flatmin estimator, skorch net or torch.nn.Module
            As in :class:`flatmin.CurvatureAnalyzer`.
        X : array-like of shape (n_samples, n_features, ...), default=None
            None is the training data of a flatmin estimator.
        y : array-like of shape (n_samples,), default=None
        sample_weight : array-like of shape (n_samples,), default=None
        loss : str, loss module or callable, default=None
            A module needs one.
        k : int, default=20
            Leading eigenvalues, or all where they are fewer.
        n_probes, n_steps : int, default=10, 80
            Of :func:`flatmin.linalg.spectral_density`.
        width : float, default=None
            Of the smoothing; None is a hundredth of the range of the eigenvalues.
        select : str or list of str, default=None
            Names of parameters or modules: the blocks of H and Σ.
        device, dtype : default=None
            Of the analysis; None is the model's.
        random_state : int, RandomState instance or None, default=None
            Of start vectors and probes.
        kind : {"both", "eigenvalues", "density"}, default="both"
            What to draw. "eigenvalues" spares the density, and "density" all of Σ.
        normalised : bool, default=True
            See :meth:`plot`.
        ax : matplotlib Axes or pair of them, default=None
            See :meth:`plot`.
        **risk_options
            How the risk of a module is made: ``output_transform``, ``target``,
            ``positions``, ``l2``, ``batch_norm``, ``hvp`` and ``compile``, as in
            :class:`flatmin.CurvatureAnalyzer`.

        Returns
        -------
        SpectrumDisplay
        """
        check_known("kind", kind, _KINDS)
        check_axes(ax, 2 if kind == "both" else 1)
        check_flag("normalised", normalised)
        check_count("n_probes", n_probes, at_least=2)
        check_count("n_steps", n_steps)
        if width is not None:
            check_positive("width", width)
        given = estimator, (X, y, sample_weight), risk_options
        settings = {
            "loss": loss,
            "n_components": k,
            "select": select,
            "device": device,
            "dtype": dtype,
            "random_state": random_state,
        }
        table, spectrum, leading = None, None, None
        if kind != "density":
            noise = fit_analyzer(NoiseCovarianceAnalyzer, *given, **settings)
            table = noise.alignment()
        if kind != "eigenvalues":
            curvature = fit_analyzer(CurvatureAnalyzer, *given, **settings)
            spectrum = curvature.density(n_probes=n_probes, n_steps=n_steps)
            leading = curvature.eigen().eigenvalues if table is None else None
        display = cls.from_results(table, spectrum, width=width)
        if leading is not None:
            display.hessian_eigenvalues = leading
        return display.plot(ax, kind=kind, normalised=normalised and table is not None)

    @classmethod
    def from_results(
        cls,
        table: Alignment | None = None,
        spectrum: SpectralDensity | None = None,
        *,
        width: float | None = None,
    ) -> SpectrumDisplay:
        """Take what the analyzers have computed; nothing is drawn yet.

        Parameters
        ----------
        table : Alignment, default=None
            Of :meth:`flatmin.NoiseCovarianceAnalyzer.alignment`; None with a density
            alone.
        spectrum : SpectralDensity, default=None
            Of :meth:`flatmin.CurvatureAnalyzer.density`: of H, or without a table of
            any matrix.
        width : float, default=None
            Of the smoothing, in units of the eigenvalues; None is a hundredth of their
            range.

        Returns
        -------
        SpectrumDisplay

        Raises
        ------
        TypeError
            If these are not such results.
        ValueError
            If there is none, the table is of a subset and has no eigenvalues, or it
            comes with the density of another matrix than H, whose outliers its
            eigenvalues are not.
        """
        return cls(**display_numbers(table, spectrum, width))

    def normalised(self) -> list[np.ndarray]:
        """Return the eigenvalues of H, and of Σ if there are, over Frobenius norms.

        Returns
        -------
        list of ndarray of shape (k,)

        Raises
        ------
        ValueError
            If a norm is missing or not positive, or an eigenvalue is not finite.
        """
        self._check_eigenvalues()
        pairs = [(self.hessian_eigenvalues, self.hessian_norm)]
        if self.covariance_eigenvalues is not None:
            pairs.append((self.covariance_eigenvalues, self.covariance_norm))
        for _, norm in pairs:
            if norm is None or not 0 < norm < np.inf:
                raise ValueError(
                    "Normalised eigenvalues need the Frobenius norms, above 0. Got "
                    f"{norm}; pass hessian_norm and covariance_norm, or "
                    "plot(normalised=False)."
                )
        return [np.asarray(values, float) / norm for values, norm in pairs]

    def bulk(self) -> tuple[float, float]:
        """Return the interval around the mode that single eigenvalues do not fill.

        Returns
        -------
        low : float
        high : float

        Raises
        ------
        ValueError
            If there is no density, or it is not finite.
        """
        if any(v is None for v in (self.grid, self.density, self.width, self.n_params)):
            raise ValueError(
                "The bulk is read off the density. Got none; pass grid, density, width "
                "and n_params, or a SpectralDensity to from_results."
            )
        if not np.isfinite(np.asarray(self.density, float)).all():
            raise ValueError("density must be finite numbers. Got one that is not.")
        return bulk_of(self.grid, self.density, self._density_of_one())

    def _density_of_one(self) -> float:
        return density_of_one(self.n_params, self.width)

    def outliers(self) -> np.ndarray:
        """Return the leading eigenvalues of H that lie to the right of the bulk.

        Returns
        -------
        ndarray of shape (n_outliers,)

        Raises
        ------
        ValueError
            If there are no eigenvalues, one is not finite, or there is no density.
        """
        self._check_eigenvalues()
        values = np.asarray(self.hessian_eigenvalues, float)
        return values[values > self.bulk()[1]]

    def plot(
        self, ax: Any = None, *, kind: str | None = None, normalised: bool | None = None
    ) -> SpectrumDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes or pair of them, default=None
            None makes a figure; a single one is cut up if there are two panels.
        kind : {"both", "eigenvalues", "density"}, default=None
            None is what is there.
        normalised : bool, default=None
            Eigenvalues over the Frobenius norm, on a linear scale, instead of as they
            are, on a log scale. None is True where the norms are known.

        Returns
        -------
        SpectrumDisplay

        Raises
        ------
        ValueError
            If what should be drawn is missing or not finite.
        """
        if kind is None:
            there = self.hessian_eigenvalues is not None, self.density is not None
            kind = {(True, False): "eigenvalues", (False, True): "density"}.get(
                there, "both"
            )
        check_known("kind", kind, _KINDS)
        if normalised is not None:
            normalised = check_flag("normalised", normalised)
        else:
            normalised = self.hessian_norm is not None
        # Asked for before anything is drawn: they may raise.
        series = [] if kind == "density" else self._series(normalised)
        outliers, count = np.empty(0), None
        if kind != "eigenvalues":
            self.bulk()
            if self.hessian_eigenvalues is not None:
                outliers = self.outliers()
                n_known = len(self.hessian_eigenvalues)
                count = count_of_outliers(len(outliers), n_known, self.n_params)
        self.axes_ = make_axes(ax, 2 if kind == "both" else 1)
        self.figure_ = self.axes_[0].figure
        if kind != "density":
            self.stems_ = draw_eigenvalues(self.axes_[0], series, normalised=normalised)
        if kind != "eigenvalues":
            self.density_line_, self.outlier_marks_ = draw_density(
                self.axes_[-1],
                np.asarray(self.grid),
                np.asarray(self.density),
                outliers,
                count,
                one=self._density_of_one(),
                matrix=self.matrix,
            )
        return self

    def _check_eigenvalues(self) -> None:
        if self.hessian_eigenvalues is None:
            raise ValueError(
                "This display has a density alone. Got no eigenvalues; pass "
                "hessian_eigenvalues, or an Alignment to from_results."
            )
        for name in ("hessian_eigenvalues", "covariance_eigenvalues"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(np.asarray(values, float)).all():
                raise ValueError(
                    f"{name} must be finite numbers. Got {np.asarray(values)}; leave "
                    "out what is not known."
                )

    def _series(self, normalised: bool) -> list[np.ndarray]:
        """Return what is drawn as stems."""
        if normalised:
            return self.normalised()
        self._check_eigenvalues()
        values = [self.hessian_eigenvalues, self.covariance_eigenvalues]
        return [np.asarray(v, float) for v in values if v is not None]


def _plot(spectrum: SpectralDensity, ax: Any, width: float | None) -> SpectrumDisplay:
    return SpectrumDisplay.from_results(None, spectrum, width=width).plot(ax)


SpectralDensity._draw = staticmethod(_plot)
