"""Losses on lines and planes through a point: what a landscape is drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatmin._utils.arrays import to_array
from flatmin._utils.callables import check_callable
from flatmin._utils.messages import shown
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_count, check_positive
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import make_generator, make_seed
from flatmin.plotting._directions import filter_normalised, principal_directions
from flatmin.risk import EmpiricalRisk

__all__ = [
    "axis_labels",
    "box_around",
    "check_grid",
    "check_metric",
    "curvatures_along",
    "metric_name",
    "section_directions",
    "section_reach",
    "values_on",
]


def check_grid(n_points: int, span: float | None) -> None:
    """Raise unless a section has points and reaches somewhere."""
    check_count("n_points", n_points, at_least=2)
    if span is not None:
        check_positive("span", span)


def section_directions(
    directions: Any, n: int, analyzer: Any, *, path: Any, random_state: Any
) -> np.ndarray:
    """Return the directions that were asked for as columns, of shape (D, n).

    Parameters
    ----------
    directions : {"hessian", "covariance", "random", "trajectory"} or array-like
        An array is taken as it is.
    n : int
        Of a name; an array has its own.
    analyzer : CurvatureAnalyzer or NoiseCovarianceAnalyzer
        Fitted, of the matrix whose eigenvectors are asked for.
    path : ndarray of shape (n_steps, D) or None
        The trajectory whose principal directions are asked for.
    random_state : int, RandomState instance or None

    Returns
    -------
    ndarray of shape (D, n)

    Raises
    ------
    ValueError
        If an array does not fit, or there are fewer eigenvectors than n.
    """
    risk = analyzer.risk_
    if not isinstance(directions, str):
        return _as_directions(directions, risk.n_params)
    if directions == "random":
        return _random_directions(risk, n, make_seed(random_state))
    if directions == "trajectory":
        return principal_directions(path, n)
    A = analyzer.eigen().eigenvectors.astype(np.float64)
    if A.shape[1] < n:
        raise ValueError(
            f"The {directions} has {A.shape[1]} eigenvectors here. Got "
            f"n_directions={n}."
        )
    return A


def axis_labels(kind: str | None, curvatures: np.ndarray | None, n: int) -> list[str]:
    """Return a label for each direction, with the curvature along it where known.

    Parameters
    ----------
    kind : str or None
        As in :func:`section_directions`; None for the caller's own directions.
    curvatures : ndarray of shape (n,) or None
    n : int

    Returns
    -------
    list of str
    """
    if curvatures is None:
        return [f"random direction {i}, filter norms" for i in range(1, n + 1)]
    symbol, source = {
        "hessian": ("u", " of $H$"),
        "covariance": ("v", r" of $\Sigma$"),
        "trajectory": ("p", " of the run"),
        None: ("a", ""),
    }[kind]
    names = [f"{symbol}_{i}" for i in range(1, n + 1)]
    return [
        rf"along ${name}${source}, ${name}^\top{{H}}{name}={curvature:.3g}$"
        for name, curvature in zip(names, curvatures, strict=True)
    ]


def _as_directions(directions: Any, n_params: int) -> np.ndarray:
    """Return a caller's directions as independent columns."""
    A = to_array("directions", directions, finite=False)
    if A.ndim == 1:
        A = A[:, None]
    if A.ndim != 2 or len(A) != n_params or A.shape[1] not in (1, 2):
        raise ValueError(
            f"directions must be one or two columns of {n_params} numbers. Got shape "
            f"{A.shape}."
        )
    if not np.isfinite(A).all() or np.linalg.matrix_rank(A) < A.shape[1]:
        raise ValueError("directions must be finite and linearly independent.")
    return A


def _random_directions(risk: EmpiricalRisk, n: int, seed: int) -> np.ndarray:
    """Return filter-normalised random directions as columns."""
    theta, rng = risk.params(), make_generator(seed, risk.device)
    columns = [filter_normalised(theta, risk.layout, rng) for _ in range(n)]
    return torch.stack(columns, 1).double().cpu().numpy()


def curvatures_along(risk: EmpiricalRisk, theta: Tensor, A: np.ndarray) -> np.ndarray:
    """Return aᵀHa of the columns."""
    point = risk.linearize(theta, n_products=A.shape[1])
    columns = torch.as_tensor(A, dtype=risk.dtype, device=risk.device)
    return np.array([float(a @ point.hvp(a)) for a in columns.unbind(1)])


def box_around(points: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a box around points, not much longer than it is wide.

    Parameters
    ----------
    points : ndarray of shape (n_points, n)
    margin : float
        In parts of the longest side.

    Returns
    -------
    low, high : ndarray of shape (n,)
    """
    low, high = points.min(axis=0), points.max(axis=0)
    longest = (high - low).max()
    # A path that stands still, or goes along one axis, still lies in a picture.
    longest = longest if longest > 0 else 1.0
    half = np.maximum(high - low, longest / 2) / 2 + margin * longest
    middle = (low + high) / 2
    return middle - half, middle + half


def section_reach(span: float | None, curvatures: np.ndarray | None) -> float:
    """Return how far a section reaches to either side."""
    if span is not None:
        return float(span)
    reach, steepest = 1.0, 0.0 if curvatures is None else np.abs(curvatures).max()
    if steepest > 0:
        reach = float(np.sqrt(2 / steepest))
    return reach


def check_metric(metric: Any) -> None:
    """Raise unless something can be drawn over a section."""
    if isinstance(metric, str):
        check_known("metric", metric, ("loss", "accuracy"))
    else:
        check_callable("metric", metric, "risk", "theta")


def metric_name(metric: Any) -> str:
    """Return what labels call a metric."""
    if isinstance(metric, str):
        return metric
    return str(getattr(metric, "__name__", type(metric).__name__)).replace("_", " ")


def values_on(
    risk: EmpiricalRisk,
    theta: Tensor,
    A: np.ndarray,
    grids: list[np.ndarray],
    *,
    metric: Any,
    verbose: bool | int,
) -> np.ndarray:
    """Return a metric on the grid, (n,) or (m, n): the first direction along rows."""
    measure = {"loss": EmpiricalRisk.value, "accuracy": EmpiricalRisk.accuracy}.get(
        metric if isinstance(metric, str) else "", metric
    )
    columns = torch.as_tensor(A, dtype=risk.dtype, device=risk.device)
    mesh = np.meshgrid(*grids)  # for two, y changes from row to row
    steps = np.stack([part.ravel() for part in mesh], axis=1)
    found = []
    with progress_bar(len(steps), metric_name(metric), verbose=verbose) as bar:
        for step in torch.as_tensor(steps, dtype=risk.dtype, device=risk.device):
            value = measure(risk, theta + columns @ step)
            try:
                found.append(float(value))
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"metric must return a number. Got {shown(value)} from "
                    f"{metric_name(metric)!r}."
                ) from error
            bar.update()
    return np.array(found).reshape(mesh[0].shape)
