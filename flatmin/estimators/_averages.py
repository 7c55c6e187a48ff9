"""What a network predicts on average over several points θ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatmin._utils.arrays import to_array
from flatmin.estimators._outputs import outputs_and_targets
from flatmin.estimators._trajectory import Trajectory
from flatmin.risk import EmpiricalRisk
from flatmin.risk.data.inputs import check_held
from flatmin.risk.network.batch_statistics import write_statistics
from flatmin.risk.network.module_copy import copy_module

__all__ = ["mean_over"]


def mean_over(
    estimator: Any, X: Any, params: Any, of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the mean over points θ of a function of the outputs.

    Parameters
    ----------
    estimator : estimator
        Fitted. Its own network is left alone.
    X : array-like of shape (n_samples, n_features, ...), or a data set
        Goes through the network once a point.
    params : array-like of shape (n_points, n_params) or (n_params,)
    of : callable
        Takes the outputs of shape (n_samples, ...) at one point.

    Returns
    -------
    ndarray of shape (n_samples, ...), float64
    """
    module = copy_module(estimator.module_)
    named = dict(module.named_parameters())
    held = [named[name] for name in estimator._names]
    points = _check_points(params, sum(p.numel() for p in held))
    risk = _risk_for_statistics(estimator)
    total: Any = 0.0
    for point in points:
        theta = _write(held, point)
        if risk is not None:
            write_statistics(module, risk.batch_statistics(theta))
        outputs, _ = outputs_and_targets(estimator, X, module)
        total = total + of(outputs.astype(np.float64))
    mean: np.ndarray = total / len(points)
    return mean


def _check_points(params: Any, n_params: int) -> np.ndarray:
    """Return points of shape (n_points, D); those of a trajectory are not copied."""
    if isinstance(params, Trajectory):
        points = params.params
    else:
        points = to_array("params", params)
    points = points[None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] != n_params or not len(points):
        raise ValueError(
            f"params must hold at least one flat vector of the network's {n_params} "
            f"trainable parameters, shape (n_points, {n_params}). Got shape "
            f"{points.shape}."
        )
    return points


def _risk_for_statistics(estimator: Any) -> EmpiricalRisk | None:
    """Return the risk whose statistics BatchNorm has at each point, if it needs any."""
    if estimator._batch_norm != "batch":
        return None
    risk: EmpiricalRisk | None = estimator.risk_
    if risk is None:
        raise ValueError(
            "With batch_norm='batch' a prediction at other params needs the statistics "
            "of the training set there, and this estimator no longer holds its data "
            "(store_data=False, or it was pickled). Predict without params, or fit it "
            "again with store_data=True."
        )
    return risk


def _write(held: list[torch.nn.Parameter], point: np.ndarray) -> Tensor:
    given = torch.from_numpy(point)
    theta: Tensor = given.to(held[0].dtype)
    check_held(theta, given, "params")
    parts = theta.split([p.numel() for p in held])
    for parameter, part in zip(held, parts, strict=True):
        parameter.data.copy_(part.view(parameter.shape))
    return theta.to(held[0].device)
