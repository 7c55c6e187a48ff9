"""Lines and planes through θ: what a section of the loss is taken along."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatmin._utils.arrays import to_array
from flatmin.risk.network.layout import ParameterLayout

__all__ = [
    "check_trajectory",
    "filter_normalised",
    "plane_through",
    "principal_directions",
    "project",
]


def filter_normalised(
    theta: Tensor, layout: ParameterLayout, rng: torch.Generator
) -> Tensor:
    """Return a random direction whose filters are as long as those of θ.

    Of a Gaussian direction d every filter becomes dⱼ ‖θⱼ‖ / ‖dⱼ‖. A filter is a slice
    along the first axis of a weight: what makes one channel of a convolution, or one
    output of a linear layer. Parameters of one axis (biases, scales of normalisations)
    stay where they are, as in the authors' code. So the section does not depend on how
    the scale of a layer is shared with the next.

    Parameters
    ----------
    theta : Tensor of shape (D,)
    layout : ParameterLayout
    rng : torch.Generator
        On the device of θ.

    Returns
    -------
    Tensor of shape (D,)

    References
    ----------
    H. Li, Z. Xu, G. Taylor, C. Studer and T. Goldstein, "Visualizing the loss landscape
    of neural nets", NeurIPS 2018, arXiv 1712.09913, section 4.

    Examples
    --------
    >>> layout = ParameterLayout(("weight", "bias"), ((2, 2), (2,)))
    >>> theta = torch.tensor([3.0, 4.0, 0.0, 1.0, 7.0, 7.0])
    >>> d = filter_normalised(theta, layout, torch.Generator().manual_seed(0))
    >>> d[:4].view(2, 2).norm(dim=1), d[4:]
    (tensor([5.0000, 1.0000]), tensor([0., 0.]))
    """
    d = torch.randn(theta.shape, generator=rng, dtype=theta.dtype, device=theta.device)
    for part, weight in zip(layout.views(d), layout.views(theta), strict=True):
        if weight.ndim < 2:
            part.zero_()
            continue
        rows, filters = part.view(len(part), -1), weight.reshape(len(weight), -1)
        rows *= filters.norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True)
    return d


def plane_through(points: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the plane through three points.

    The first vector leads from the first point to the second, the third point lies on
    the side of the second vector.

    Parameters
    ----------
    points : ndarray of shape (3, D)

    Returns
    -------
    ndarray of shape (D, 2)

    Raises
    ------
    ValueError
        If the points lie on a line.

    Examples
    --------
    >>> plane_through(np.array([[0.0, 0.0], [2.0, 0.0], [3.0, 4.0]]))
    array([[1., 0.],
           [0., 1.]])
    """
    first, second = points[1] - points[0], points[2] - points[0]
    length = np.linalg.norm(first)
    along = first / length if length else first
    across = second - (along @ second) * along
    height = np.linalg.norm(across)
    if not length or height <= 1e-6 * np.linalg.norm(second):
        raise ValueError(
            "Three solutions span a plane if they do not lie on a line. Got distances "
            f"{length:.3g} between the first two and {height:.3g} of the third from "
            "their line; pass solutions that differ."
        )
    return np.stack([along, across / height], axis=1)


def principal_directions(trajectory: np.ndarray, n: int) -> np.ndarray:
    """Return the directions in which a trajectory varies most, orthonormal columns.

    Parameters
    ----------
    trajectory : ndarray of shape (n_steps, D)
    n : int

    Returns
    -------
    ndarray of shape (D, n)

    Raises
    ------
    ValueError
        If it does not vary in n directions.

    Examples
    --------
    >>> abs(principal_directions(np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 5.0]]), 1))
    array([[0.],
           [1.]])
    """
    centred = trajectory - trajectory.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    if len(sizes) < n or not sizes[n - 1] > 1e-10 * sizes[0]:
        raise ValueError(
            f"A trajectory must vary in {n} directions to give as many. Got "
            f"{len(trajectory)} points that do not."
        )
    return directions[:n].T


def check_trajectory(trajectory: Any, n_params: int) -> np.ndarray:
    """Return a trajectory in float64.

    Parameters
    ----------
    trajectory : array-like of shape (n_steps, D)
    n_params : int
        D.

    Returns
    -------
    ndarray of shape (n_steps, D)

    Raises
    ------
    TypeError
        If it is no array of numbers.
    ValueError
        If the shape does not fit, or a number is not finite.
    """
    points = to_array("trajectory", trajectory)
    if points.ndim != 2 or points.shape[1] != n_params or len(points) < 2:
        raise ValueError(
            "A trajectory must hold at least two flat parameter vectors, shape "
            f"(n_steps, {n_params}). Got {points.shape}."
        )
    return points


def project(
    points: np.ndarray, origin: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return the coordinates of a trajectory in a plane, and what it holds of it.

    Parameters
    ----------
    points : ndarray of shape (n_steps, D)
    origin : ndarray of shape (D,)
        Of the coordinates.
    directions : ndarray of shape (D, n)
        Linearly independent; the projection is orthogonal whether they are or not.

    Returns
    -------
    coordinates : ndarray of shape (n_steps, n)
    share : float
        Of the trajectory's variance, Σ‖P(θₜ - θ̄)‖² / Σ‖θₜ - θ̄‖²; NaN if it stands
        still.

    Examples
    --------
    >>> line = np.array([[0.0, 1.0], [3.0, 5.0]])
    >>> project(line, np.zeros(2), np.array([[2.0], [0.0]]))
    (array([[0. ],
           [1.5]]), 0.36)
    """
    coordinates = np.linalg.lstsq(directions, (points - origin).T, rcond=None)[0].T
    total = np.square(points - points.mean(axis=0)).sum()
    inside = (coordinates - coordinates.mean(axis=0)) @ directions.T
    share = float(np.square(inside).sum() / total) if total else float("nan")
    return coordinates, share
