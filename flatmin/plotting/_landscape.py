"""Sections of the loss along lines and planes, with a trajectory projected on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatmin._utils.arrays import to_array
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_flag, check_positive, is_count
from flatmin.analysis import CurvatureAnalyzer, NoiseCovarianceAnalyzer
from flatmin.plotting._base import BaseDisplay
from flatmin.plotting._figure import check_axes, make_axes, make_solid_axes
from flatmin.plotting._landscape_drawing import draw_line, draw_plane, draw_surface
from flatmin.plotting._models import fit_analyzer
from flatmin.plotting._section_numbers import plane_of, section_of
from flatmin.plotting._sections import check_grid, check_metric

__all__ = ["LandscapeDisplay"]

_DIRECTIONS = ("hessian", "covariance", "random", "trajectory")
_LOG_FROM = 10  # ratio of the largest to the smallest loss
# Where the loss falls to 0, all of a logarithmic scale would be spent on rounding.
_LOG_RANGE = 1e-6


class LandscapeDisplay(BaseDisplay):
    """The loss L(θ + xa + yb) on a line or in a plane through a solution.

    It is recommended to use :meth:`from_estimator` or :meth:`from_solutions`. A plane
    shows little of a space of many dimensions: the picture says which share of a
    trajectory's variance lies in it.

    Parameters
    ----------
    x : array-like of shape (n,)
        Steps along a, rising.
    values : array-like of shape (n,) or (m, n)
        The loss, or another quantity, on the line, or in the plane where y changes from
        row to row. What is not finite stays white.
    y : array-like of shape (m,), default=None
        Steps along b; None with a line.
    labels : tuple of str, default=("x", "y")
        Of the axes.
    equal : bool, default=False
        x and y have the same unit and are at right angles, so that distances in the
        plane are distances of parameters.
    points : array-like of shape (n_points, 2), default=None
        Solutions to mark, (x, y).
    trajectory : array-like of shape (n_steps, 1) or (n_steps, 2), default=None
        Its coordinates, from the start to the end.
    share : float, default=None
        Of the trajectory's variance, the part in the line or plane, from 0 to 1.
    quantity : str, default="loss"
        What the values are.

    Attributes
    ----------
    axes_ : ndarray of one matplotlib Axes
        Also ``ax_``.
    figure_ : matplotlib Figure
    line_ : matplotlib Line2D
        The loss, on a line.
    contours_ : matplotlib QuadContourSet
        The loss, in a plane.
    surface_ : mpl_toolkits.mplot3d.art3d.Poly3DCollection
        The loss over a plane, with ``kind="surface"``.
    colorbar_ : matplotlib Colorbar
    trajectory_line_ : matplotlib Line2D
        If there is a trajectory.

    References
    ----------
    H. Li, Z. Xu, G. Taylor, C. Studer and T. Goldstein, "Visualizing the loss landscape
    of neural nets", NeurIPS 2018, arXiv 1712.09913. The plane through three solutions:
    T. Garipov et al., "Loss surfaces, mode connectivity, and fast ensembling of DNNs",
    NeurIPS 2018, arXiv 1802.10026.

    Examples
    --------
    The loss (θ - 1)² of one weight has the second derivative 2, so that the section
    reaches to a rise of 1:

    >>> import matplotlib.pyplot as plt
    >>> import torch
    >>> from flatmin.plotting import LandscapeDisplay
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> torch.nn.init.ones_(net.weight).tolist()
    [[1.0]]
    >>> display = LandscapeDisplay.from_estimator(
    ...     net, [[1.0]], [1.0], loss="squared_error", n_directions=1, n_points=5
    ... )
    >>> display.x, display.values
    (array([-1. , -0.5,  0. ,  0.5,  1. ]), array([1.  , 0.25, 0.  , 0.25, 1.  ]))
    >>> plt.close(display.figure_)
    """

    def __init__(
        self,
        x,
        values,
        *,
        y=None,
        labels=("x", "y"),
        equal=False,
        points=None,
        trajectory=None,
        share=None,
        quantity="loss",
    ):
        self.x = x
        self.values = values
        self.y = y
        self.labels = labels
        self.equal = equal
        self.points = points
        self.trajectory = trajectory
        self.share = share
        self.quantity = quantity

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        y: Any = None,
        *,
        sample_weight: Any = None,
        loss: Any = None,
        directions: Any = "hessian",
        n_directions: int = 2,
        span: float | None = None,
        n_points: int = 25,
        trajectory: Any = None,
        margin: float = 0.15,
        metric: Any = "loss",
        device: Any = None,
        dtype: Any = None,
        random_state: Any = None,
        verbose: bool | int = False,
        ax: Any = None,
        **risk_options: Any,
    ) -> LandscapeDisplay:
        """Compute a section through a fitted model and draw it.

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
        directions : str or array-like of shape (D, n_directions), default="hessian"
            "hessian" and "covariance" are leading eigenvectors of H and Σ, of length
            1. "random" are Gaussian directions d with every filter (slice of a weight
            along its first axis) scaled to dⱼ ‖θⱼ‖ / ‖dⱼ‖, and 0 for biases and other
            parameters of one axis, as Li et al. do. "trajectory" are its principal
            directions. Columns of an array are taken as they are.
        n_directions : {1, 2}, default=2
            A line or a plane; of an array, its columns.
        span : float, default=None
            The section reaches from -span to span, in multiples of the directions.
            None is the box of the trajectory, and of the model, with a margin. Without
            a trajectory it is 1 for "random", else where the second order of the more
            curved direction has raised the loss by 1.
        n_points : int, default=25
            Along each direction; the loss is computed at all n_points ** n_directions.
        trajectory : array-like of shape (n_steps, D), default=None
            Flat parameter vectors of a run, in the order of ``params_``.
        margin : float, default=0.15
            Around that box, in parts of its longer side.
        metric : {"loss", "accuracy"} or callable, default="loss"
            What is drawn. "accuracy" is the share of right classes among the examples,
            which count alike; a function of (risk, θ) returns a number.
        device, dtype : default=None
            Of the analysis; None is the model's.
        random_state : int, RandomState instance or None, default=None
            Of random directions and start vectors.
        verbose : bool or int, default=False
            Show a progress bar over the losses.
        ax : matplotlib Axes, default=None
            None makes a figure.
        **risk_options
            How the risk of a module is made: ``output_transform``, ``target``,
            ``positions``, ``l2``, ``batch_norm``, ``hvp`` and ``compile``, as in
            :class:`flatmin.CurvatureAnalyzer`.

        Returns
        -------
        LandscapeDisplay

        Raises
        ------
        ValueError
            If the arguments do not fit together.
        """
        kind = directions if isinstance(directions, str) else None
        if kind is not None:
            check_known("directions", kind, _DIRECTIONS)
            if not is_count(n_directions) or n_directions > 2:
                raise ValueError(f"n_directions must be 1 or 2. Got {n_directions!r}.")
        if kind == "trajectory" and trajectory is None:
            raise ValueError("directions='trajectory' needs a trajectory. Got None.")
        check_grid(n_points, span)
        check_axes(ax, 1)
        margin = check_positive("margin", margin, or_zero=True)
        check_metric(metric)
        analyzer = fit_analyzer(
            NoiseCovarianceAnalyzer if kind == "covariance" else CurvatureAnalyzer,
            estimator,
            (X, y, sample_weight),
            risk_options,
            loss=loss,
            n_components=n_directions,
            device=device,
            dtype=dtype,
            random_state=random_state,
        )
        numbers = section_of(
            analyzer,
            directions,
            n_directions,
            trajectory,
            span=span,
            margin=margin,
            n_points=n_points,
            metric=metric,
            random_state=random_state,
            verbose=verbose,
        )
        return cls(**numbers).plot(ax)

    @classmethod
    def from_solutions(
        cls,
        estimator: Any,
        solutions: Any,
        X: Any = None,
        y: Any = None,
        *,
        sample_weight: Any = None,
        loss: Any = None,
        margin: float = 0.3,
        n_points: int = 25,
        trajectory: Any = None,
        metric: Any = "loss",
        device: Any = None,
        dtype: Any = None,
        verbose: bool | int = False,
        ax: Any = None,
        **risk_options: Any,
    ) -> LandscapeDisplay:
        """Compute the plane through three solutions and draw it.

        The horizontal axis leads from the first to the second, the vertical one at a
        right angle to it towards the third; both are distances of parameters.

        Parameters
        ----------
        estimator : flatmin estimator, skorch net or torch.nn.Module
            Gives the network, the loss and, for a flatmin estimator, the data.
        solutions : array-like of shape (3, D)
            Flat parameter vectors of that network, such as ``params_`` of three fits.
        X : array-like of shape (n_samples, n_features, ...), default=None
            None is the training data of a flatmin estimator.
        y : array-like of shape (n_samples,), default=None
        sample_weight : array-like of shape (n_samples,), default=None
        loss : str, loss module or callable, default=None
            A module needs one.
        margin : float, default=0.3
            Around the three, in parts of the extent along either axis.
        n_points : int, default=25
            Along either axis.
        trajectory : array-like of shape (n_steps, D), default=None
            Flat parameter vectors of a run.
        metric : {"loss", "accuracy"} or callable, default="loss"
            As in :meth:`from_estimator`.
        device, dtype : default=None
            Of the analysis; None is the model's.
        verbose : bool or int, default=False
            Show a progress bar over the losses.
        ax : matplotlib Axes, default=None
            None makes a figure.
        **risk_options
            How the risk of a module is made: ``output_transform``, ``target``,
            ``positions``, ``l2``, ``batch_norm``, ``hvp`` and ``compile``, as in
            :class:`flatmin.CurvatureAnalyzer`.

        Returns
        -------
        LandscapeDisplay

        Raises
        ------
        ValueError
            If the arguments do not fit together, or the solutions lie on a line.
        """
        check_grid(n_points, None)
        check_axes(ax, 1)
        margin = check_positive("margin", margin, or_zero=True)
        check_metric(metric)
        thetas = to_array("solutions", solutions, (None, None))
        analyzer = fit_analyzer(
            CurvatureAnalyzer,
            estimator,
            (X, y, sample_weight),
            risk_options,
            loss=loss,
            device=device,
            dtype=dtype,
        )
        numbers = plane_of(
            analyzer.risk_,
            thetas,
            trajectory,
            margin=margin,
            n_points=n_points,
            metric=metric,
            verbose=verbose,
        )
        return cls(**numbers).plot(ax)

    def plot(
        self, ax: Any = None, *, log: bool | None = None, kind: str = "contours"
    ) -> LandscapeDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure. A surface needs one with ``projection="3d"``.
        log : bool, default=None
            The loss of a plane on a logarithmic scale, which ends a millionth below the
            largest: what is lower, also 0, has the colour of that. None is True for a
            loss that is nowhere negative and spans more than a factor of 10.
        kind : {"contours", "surface"}, default="contours"
            Of a plane.

        Returns
        -------
        LandscapeDisplay

        Raises
        ------
        ValueError
            If the arrays do not fit together, or no loss is finite.
        """
        check_known("kind", kind, ("contours", "surface"))
        if log is not None:
            log = check_flag("log", log)
        if kind == "surface" and self.y is None:
            raise ValueError(
                "kind='surface' is for a plane. Got a section along one direction; "
                "compute one with n_directions=2."
            )
        loss = np.asarray(self.values, dtype=np.float64)
        shape = (len(self.x),) if self.y is None else (len(self.y), len(self.x))
        if loss.shape != shape:
            raise ValueError(f"values must have the shape {shape}. Got {loss.shape}.")
        finite = loss[np.isfinite(loss)]
        if not len(finite):
            raise ValueError("No loss of the section is finite; take a smaller span.")
        low, high = finite.min(), finite.max()
        if log is None:
            wide = bool(low >= 0 and high > _LOG_FROM * low)
            log = wide and self.quantity == "loss"
        elif log and not high > 0:
            raise ValueError(
                f"A logarithmic scale needs a value above 0. Got none above {high:g}; "
                "pass log=False."
            )
        if kind == "surface":
            self.axes_ = make_solid_axes(ax)
        else:
            self.axes_ = make_axes(ax, 1)
        self.figure_ = self.axes_[0].figure
        shown = np.ma.masked_invalid(
            np.maximum(loss, _LOG_RANGE * high) if log else loss
        )
        if self.y is None:
            artists = draw_line(self.ax_, self, loss)
        elif kind == "surface":
            artists = draw_surface(self.ax_, self, shown, log)
        else:
            artists = draw_plane(self.ax_, self, shown, log)
        vars(self).update(artists)
        return self
