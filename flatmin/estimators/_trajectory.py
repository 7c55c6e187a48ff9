"""The points θ that a fit has kept, and what can be asked of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from flatmin._utils.results import ShortRepr, as_array
from flatmin.dynamics import KeptParams, check_metrics, measure_metrics
from flatmin.risk import EmpiricalRisk

__all__ = ["Trajectory", "read_kept", "rows_before"]


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(ShortRepr):
    """Points θ of a training: ``trajectory_`` with ``keep_params_every=k``.

    NumPy takes it for the array of its points, and so does what wants an array of them:
    ``predict_proba(X, params=trajectory)``,
    ``LandscapeDisplay.from_estimator(clf, trajectory=trajectory)``.

    Attributes
    ----------
    iterations : ndarray of shape (n_points,), int
        As in ``history_``: the warm-up's are counted.
    params : ndarray of shape (n_points, n_params)
        θ there, in the dtype of the training.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import NoisyDiffusionClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = NoisyDiffusionClassifier(
    ...     max_iter=25, keep_params_every=10, warmup={"max_iter": 7}, random_state=0
    ... ).fit(X, y)
    >>> clf.trajectory_.iterations
    array([ 7, 17, 27])
    >>> norms = clf.trajectory_.measure(
    ...     clf.risk_, {"norm": lambda risk, theta: theta.norm()}
    ... )
    >>> norms.columns.tolist(), len(norms)
    (['iteration', 'norm'], 3)
    """

    iterations: np.ndarray  # (n,)
    params: np.ndarray  # (n, D)

    def __len__(self) -> int:
        return len(self.iterations)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return as_array(self.params, dtype, copy)

    def measure(
        self, risk: EmpiricalRisk, metrics: Mapping[str, Callable[..., Any]]
    ) -> pd.DataFrame:
        """Measure every point, as ``metrics`` of an estimator would have.

        Parameters
        ----------
        risk : EmpiricalRisk
            ``risk_`` of the estimator, or from ``make_risk`` for other data.
        metrics : dict of str to callable
            ``metric(risk, theta)`` returns a number. What one raises at the first point
            is raised; where one is not defined later, it is NaN there, and a warning
            tells why.

        Returns
        -------
        pandas.DataFrame
            A row for each point: iteration, and the metrics.

        Raises
        ------
        TypeError
            If something is of a kind that does not fit, or a metric gives no number.
        ValueError
            If the risk has other parameters.
        """
        if not isinstance(risk, EmpiricalRisk):
            raise TypeError(
                "risk must be an EmpiricalRisk, such as risk_ of the estimator. Got "
                f"{type(risk).__name__}."
            )
        if risk.n_params != self.params.shape[1]:
            raise ValueError(
                f"risk must have the {self.params.shape[1]} parameters of the points. "
                f"Got one of {risk.n_params}."
            )
        if not isinstance(metrics, Mapping):
            raise TypeError(
                "metrics must be a dict from names to functions of (risk, theta). Got "
                f"{type(metrics).__name__}."
            )
        check_metrics(metrics, table="the table", taken={"iteration"})
        rows, undefined = [], set[str]()
        for i, iteration in enumerate(self.iterations.tolist()):
            theta = torch.tensor(self.params[i], dtype=risk.dtype, device=risk.device)
            found = measure_metrics(
                metrics,
                risk,
                theta,
                iteration=iteration,
                is_first=i == 0,
                undefined=undefined,
            )
            rows.append({"iteration": iteration, **found})
        return pd.DataFrame(rows, columns=["iteration", *metrics])


def read_kept(kept: KeptParams | None) -> Trajectory | None:
    """Return what a run has kept.

    Parameters
    ----------
    kept : KeptParams or None

    Returns
    -------
    Trajectory or None
    """
    if kept is None:
        return None
    iterations, params = kept.rows()
    if params.untyped_storage().nbytes() > params.nbytes:
        params = params.clone()  # without the rest of the table, of a run cut short
    return Trajectory(np.array(iterations, dtype=np.int64), params.numpy())


def rows_before(trajectory: Trajectory | None, iteration: int) -> Any:
    """Return what a fit that goes on keeps of an earlier one.

    Parameters
    ----------
    trajectory : Trajectory or None
        Of the earlier fit.
    iteration : int
        Where the fit that goes on begins; the point there is its own.

    Returns
    -------
    tuple of (list of int, Tensor of shape (n, D)) or None
    """
    if trajectory is None:
        return None
    n = int(np.searchsorted(trajectory.iterations, iteration))
    return trajectory.iterations[:n].tolist(), torch.from_numpy(trajectory.params[:n])
