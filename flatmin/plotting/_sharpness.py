"""How the loss rises with the size of a random perturbation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from flatmin._utils.arrays import to_array
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_count, check_flag
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import make_generator, make_seed
from flatmin.analysis import CurvatureAnalyzer
from flatmin.measures._rounding import check_shift
from flatmin.plotting._base import BaseDisplay
from flatmin.plotting._figure import (
    check_axes,
    legend,
    line_styles,
    make_axes,
    tidy_axes,
)
from flatmin.plotting._models import fit_analyzer
from flatmin.risk import EmpiricalRisk

__all__ = ["SharpnessDisplay"]

_DASHED = (0, (2, 2))


class SharpnessDisplay(BaseDisplay):
    """L(θ + sξ) - L(θ) with ξ ~ N(0, I) against s, for one model or several.

    It is recommended to use :meth:`from_estimator`. The line is the mean over draws,
    which is the expected sharpness; the band holds the middle 80 % of the draws; the
    dashed line is the second-order value (s²/2) Tr(H).

    Parameters
    ----------
    sizes : array-like of shape (n_sizes,)
        s, in units of θ, rising.
    rises : mapping of str to array-like of shape (n_draws, n_sizes)
        By the name of the model, in units of the loss.
    traces : mapping of str to float, default=None
        Tr(H) of models.

    Attributes
    ----------
    axes_ : ndarray of one matplotlib Axes
        Also ``ax_``.
    figure_ : matplotlib Figure
    lines_, bands_, second_order_lines_ : dict of str to artist
        By the name of the model.

    See Also
    --------
    flatmin.measures.expected_sharpness : The mean at one s.

    Examples
    --------
    >>> from flatmin.plotting import SharpnessDisplay
    >>> display = SharpnessDisplay([0.1, 0.2], {"net": [[1.0, 4.0], [3.0, 8.0]]})
    >>> display.mean("net")
    array([2., 6.])
    """

    def __init__(self, sizes, rises, *, traces=None):
        self.sizes = sizes
        self.rises = rises
        self.traces = traces

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        *,
        sample_weight: Any = None,
        loss: Any = None,
        sizes: Any = None,
        n_draws: int = 20,
        second_order: bool = True,
        device: Any = None,
        dtype: Any = None,
        random_state: Any = 0,
        verbose: bool | int = False,
        log: bool = True,
        ax: Any = None,
        **risk_options: Any,
    ) -> SharpnessDisplay:
        """Perturb fitted models and draw how their losses rise.

        Parameters
        ----------
        estimator : flatmin estimator, skorch net, torch.nn.Module, or dict of them
            As in :class:`flatmin.CurvatureAnalyzer`; a dict has names as keys.
        X : array-like of shape (n_samples, n_features, ...), default=None
            None is each flatmin estimator's own training data.
        y : array-like of shape (n_samples,), default=None
        sample_weight : array-like of shape (n_samples,), default=None
        loss : str, loss module or callable, default=None
            A module needs one.
        sizes : array-like of shape (n_sizes,), default=None
            s > 0; None is 12 from 0.001 to 0.1, evenly in the logarithm.
        n_draws : int, default=20
            Of ξ, the same for all s.
        second_order : bool, default=True
            Estimate Tr(H) too, to 2 %.
        device, dtype : default=None
            Of the analysis; None is the model's.
        random_state : int, RandomState instance or None, default=0
            A number means common random numbers: models of one size meet the same ξ.
        verbose : bool or int, default=False
            Show a progress bar over the draws of each model.
        log : bool, default=True
            See :meth:`plot`.
        ax : matplotlib Axes, default=None
            None makes a figure.
        **risk_options
            How the risk of a module is made: ``output_transform``, ``target``,
            ``positions``, ``l2``, ``batch_norm``, ``hvp`` and ``compile``, as in
            :class:`flatmin.CurvatureAnalyzer`.

        Returns
        -------
        SharpnessDisplay

        Raises
        ------
        ValueError
            If sizes or n_draws do not fit.
        """
        check_axes(ax, 1)
        sizes = np.geomspace(1e-3, 1e-1, 12) if sizes is None else sizes
        sizes = np.sort(to_array("sizes", sizes, (None,)))
        if not len(sizes) or not (sizes > 0).all():
            raise ValueError(f"sizes must be a list of positive numbers. Got {sizes}.")
        n_draws = check_count("n_draws", n_draws)
        second_order = check_flag("second_order", second_order)
        log = check_flag("log", log)
        models = estimator if isinstance(estimator, Mapping) else {"": estimator}
        if not models:
            raise ValueError("There must be at least one model. Got an empty dict.")
        seed = make_seed(random_state)  # once, so that all models meet the same ξ
        settings = {"loss": loss, "device": device, "dtype": dtype}
        data = X, y, sample_weight
        rises, traces = {}, {}
        for name, model in models.items():
            analyzer = fit_analyzer(
                CurvatureAnalyzer,
                model,
                data,
                risk_options,
                **settings,
                random_state=seed,
            )
            risk = analyzer.risk_
            rises[name] = _rises(risk, sizes, n_draws, seed=seed, verbose=verbose)
            if second_order:
                traces[name] = analyzer.trace().value
        display = cls(sizes, rises, traces=traces or None)
        return display.plot(ax, log=log)

    def mean(self, name: str) -> np.ndarray:
        """Return the mean rise of a model, its expected sharpness.

        Parameters
        ----------
        name : str

        Returns
        -------
        ndarray of shape (n_sizes,)
        """
        check_known("model", name, self.rises)
        return np.asarray(self.rises[name], float).mean(axis=0)

    def plot(self, ax: Any = None, *, log: bool = True) -> SharpnessDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        log : bool, default=True
            Logarithmic axes. Where a mean does not rise, the vertical one is linear
            about 0, up to about a hundredth of the largest.

        Returns
        -------
        SharpnessDisplay

        Raises
        ------
        ValueError
            If the arrays do not fit together, or a loss is not finite.
        """
        log = check_flag("log", log)
        n_sizes = len(self.sizes)
        for name, rise in self.rises.items():
            if np.ndim(rise) != 2 or np.shape(rise)[1] != n_sizes:
                raise ValueError(
                    f"rises[{name!r}] must have the shape (n_draws, {n_sizes}), one "
                    f"column for each size. Got {np.shape(rise)}."
                )
            if not np.isfinite(np.asarray(rise, float)).all():
                raise ValueError(
                    f"rises[{name!r}] must be finite. Got a loss that is not, beside "
                    f"sizes up to {np.max(self.sizes):.3g}; take smaller sizes."
                )
        means = {name: self.mean(name) for name in self.rises}
        styles = line_styles(len(means))
        self.axes_ = make_axes(ax, 1)
        self.figure_ = self.axes_[0].figure
        self.lines_: dict[str, Any] = {}
        self.bands_: dict[str, Any] = {}
        self.second_order_lines_: dict[str, Any] = {}
        for (name, mean), look in zip(means.items(), styles, strict=True):
            self._draw(name, mean, look)
        if self.second_order_lines_:
            label = r"$(s^2/2)\,\mathrm{Tr}\,H$"
            self.ax_.plot([], color="0.3", linestyle=_DASHED, linewidth=1, label=label)
        if log:
            self._scale(means)
        else:
            self.ax_.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        self.ax_.set(
            xlabel=r"size $s$ of the perturbation, units of $\theta$",
            ylabel=r"$L(\theta+s\,\xi)-L(\theta)$",
        )
        legend(self.ax_)
        tidy_axes(self.ax_)
        return self

    def _draw(self, name: str, mean: np.ndarray, look: dict[str, Any]) -> None:
        ax, sizes = self.ax_, np.asarray(self.sizes, float)
        rises = np.asarray(self.rises[name], float)
        label = name or f"mean of {len(rises)} draws"
        (self.lines_[name],) = ax.plot(sizes, mean, **look, label=label)
        if len(rises) > 1:
            low, high = np.quantile(rises, [0.1, 0.9], axis=0)
            self.bands_[name] = ax.fill_between(
                sizes, low, high, color=look["color"], alpha=0.18, linewidth=0
            )
        trace = (self.traces or {}).get(name)
        if trace is not None:
            (self.second_order_lines_[name],) = ax.plot(
                sizes,
                sizes**2 / 2 * trace,
                color=look["color"],
                linestyle=_DASHED,
                linewidth=1,
            )

    def _scale(self, means: dict[str, np.ndarray]) -> None:
        self.ax_.set_xscale("log")
        values = np.concatenate(list(means.values()))
        if (values <= 0).any():
            largest = np.abs(values).max() or 1.0
            near = 10.0 ** np.floor(np.log10(largest / 100))
            self.ax_.set_yscale("symlog", linthresh=near)
            self.ax_.yaxis.get_major_locator().set_params(numticks=4)
            return
        self.ax_.set_yscale("log")
        # Draws that do not rise have no place there, and must not stretch the axis.
        self.ax_.set_ylim(values.min() / 3, values.max() * 3)


def _rises(
    risk: EmpiricalRisk,
    sizes: np.ndarray,
    n_draws: int,
    *,
    seed: int,
    verbose: bool | int,
) -> np.ndarray:
    """Return L(θ + sξ) - L(θ), (n_draws, n_sizes), in float64."""
    generator = make_generator(seed, risk.device)
    theta = risk.params()
    check_shift(theta, float(sizes.min()))
    base = risk.value(theta).double()
    rows = []
    with progress_bar(n_draws, "perturbations", verbose=verbose) as bar:
        for _ in range(n_draws):
            xi = torch.randn(
                theta.shape, generator=generator, dtype=theta.dtype, device=theta.device
            )
            moved = [risk.value(theta + s * xi).double() for s in sizes.tolist()]
            rows.append(torch.stack(moved) - base)
            bar.update()
    return torch.stack(rows).cpu().numpy()
