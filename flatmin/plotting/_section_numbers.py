"""The numbers of a picture of a section: grid, values, points and path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flatmin.plotting._directions import check_trajectory, plane_through, project
from flatmin.plotting._sections import (
    axis_labels,
    box_around,
    curvatures_along,
    metric_name,
    section_directions,
    section_reach,
    values_on,
)
from flatmin.risk import EmpiricalRisk

__all__ = ["plane_of", "section_of"]


def section_of(
    analyzer: Any,
    directions: Any,
    n_directions: int,
    trajectory: Any,
    *,
    span: float | None,
    margin: float,
    n_points: int,
    metric: Any,
    random_state: Any,
    verbose: bool | int,
) -> dict[str, Any]:
    """Return the arguments of a LandscapeDisplay of a section through a model.

    Parameters
    ----------
    analyzer : CurvatureAnalyzer or NoiseCovarianceAnalyzer
        Fitted, of the matrix whose eigenvectors are asked for.
    directions, n_directions, trajectory, span, margin, n_points, metric : object
        As in :meth:`LandscapeDisplay.from_estimator`, checked.
    random_state, verbose : object
        The same.

    Returns
    -------
    dict of str to object

    Raises
    ------
    ValueError
        If directions or trajectory do not fit the model.
    """
    risk = analyzer.risk_
    theta = risk.params()
    path = None
    if trajectory is not None:
        path = check_trajectory(trajectory, risk.n_params)
    A = section_directions(
        directions, n_directions, analyzer, path=path, random_state=random_state
    )
    coordinates, share = None, None
    if path is not None:
        coordinates, share = project(path, theta.double().cpu().numpy(), A)
    kind = directions if isinstance(directions, str) else None
    curvatures = None if kind == "random" else curvatures_along(risk, theta, A)
    if span is None and coordinates is not None:
        shown = np.concatenate([coordinates, np.zeros((1, A.shape[1]))])
        low, high = box_around(shown, margin)
    else:
        high = np.full(A.shape[1], section_reach(span, curvatures))
        low = -high
    grids = list(np.linspace(low, high, n_points, axis=1))
    return {
        "x": grids[0],
        "values": values_on(risk, theta, A, grids, metric=metric, verbose=verbose),
        "y": grids[1] if len(grids) == 2 else None,
        "labels": axis_labels(kind, curvatures, A.shape[1]),
        "equal": kind not in (None, "random"),
        "points": np.zeros((1, A.shape[1])),
        "trajectory": coordinates,
        "share": share,
        "quantity": metric_name(metric),
    }


def plane_of(
    risk: EmpiricalRisk,
    thetas: np.ndarray,
    trajectory: Any,
    *,
    margin: float,
    n_points: int,
    metric: Any,
    verbose: bool | int,
) -> dict[str, Any]:
    """Return the arguments of a LandscapeDisplay of the plane through three solutions.

    Parameters
    ----------
    risk : EmpiricalRisk
    thetas : ndarray of shape (3, D)
    trajectory, margin, n_points, metric, verbose : object
        As in :meth:`LandscapeDisplay.from_solutions`, checked.

    Returns
    -------
    dict of str to object

    Raises
    ------
    ValueError
        If the solutions do not fit the risk, or lie on a line.
    """
    if thetas.shape != (3, risk.n_params):
        raise ValueError(
            "solutions must be three flat parameter vectors, shape "
            f"(3, {risk.n_params}). Got {thetas.shape}."
        )
    A = plane_through(thetas)
    points, _ = project(thetas, thetas[0], A)
    shown, coordinates, share = points, None, None
    if trajectory is not None:
        path = check_trajectory(trajectory, risk.n_params)
        coordinates, share = project(path, thetas[0], A)
        shown = np.concatenate([points, coordinates])
    low, high = shown.min(axis=0), shown.max(axis=0)
    room = margin * (high - low)
    grids = [
        np.linspace(start, stop, n_points)
        for start, stop in zip(low - room, high + room, strict=True)
    ]
    theta = torch.as_tensor(thetas[0], dtype=risk.dtype, device=risk.device)
    return {
        "x": grids[0],
        "values": values_on(risk, theta, A, grids, metric=metric, verbose=verbose),
        "y": grids[1],
        "labels": (
            r"along $\theta_2-\theta_1$, units of $\theta$",
            r"towards $\theta_3$, units of $\theta$",
        ),
        "equal": True,
        "points": points,
        "trajectory": coordinates,
        "share": share,
        "quantity": metric_name(metric),
    }
