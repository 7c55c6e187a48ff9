"""Losses on lines and planes through a point: what a landscape is drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatmin._utils.arrays import to_array
from flatmin._utils.numbers import check_count, check_positive
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import make_generator
from flatmin.plotting._directions import filter_normalised
from flatmin.risk import EmpiricalRisk

__all__ = [
    "as_directions",
    "check_grid",
    "curvatures_along",
    "losses_on",
    "random_directions",
    "section_reach",
]


def check_grid(n_points: int, span: float | None) -> None:
    """Raise unless a section has points and reaches somewhere."""
    check_count("n_points", n_points, at_least=2)
    if span is not None:
        check_positive("span", span)


def as_directions(directions: Any, n_params: int) -> np.ndarray:
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


def random_directions(risk: EmpiricalRisk, n: int, seed: int) -> np.ndarray:
    """Return filter-normalised random directions as columns."""
    theta, rng = risk.params(), make_generator(seed, risk.device)
    columns = [filter_normalised(theta, risk.layout, rng) for _ in range(n)]
    return torch.stack(columns, 1).double().cpu().numpy()


def curvatures_along(risk: EmpiricalRisk, theta: Tensor, A: np.ndarray) -> np.ndarray:
    """Return aᵀHa of the columns."""
    point = risk.linearize(theta)
    columns = torch.as_tensor(A, dtype=risk.dtype, device=risk.device)
    return np.array([float(a @ point.hvp(a)) for a in columns.unbind(1)])


def section_reach(
    span: float | None, curvatures: np.ndarray | None, coordinates: np.ndarray | None
) -> float:
    """Return how far a section reaches to either side."""
    if span is not None:
        return float(span)
    reach, steepest = 1.0, 0.0 if curvatures is None else np.abs(curvatures).max()
    if steepest > 0:
        reach = float(np.sqrt(2 / steepest))
    if coordinates is not None:
        reach = max(reach, 1.1 * float(np.abs(coordinates).max()))
    return reach


def losses_on(
    risk: EmpiricalRisk,
    theta: Tensor,
    A: np.ndarray,
    grids: list[np.ndarray],
    verbose: bool | int,
) -> np.ndarray:
    """Return L on the grid, (n,) or (m, n): the first direction runs along the rows."""
    columns = torch.as_tensor(A, dtype=risk.dtype, device=risk.device)
    mesh = np.meshgrid(*grids)  # for two, y changes from row to row
    steps = np.stack([part.ravel() for part in mesh], axis=1)
    losses = []
    with progress_bar(len(steps), "losses", verbose=verbose) as bar:
        for step in torch.as_tensor(steps, dtype=risk.dtype, device=risk.device):
            losses.append(risk.value(theta + columns @ step))
            bar.update()
    values: np.ndarray = torch.stack(losses).double().cpu().numpy()
    return values.reshape(mesh[0].shape)
