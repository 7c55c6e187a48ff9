"""θ as it comes, as a tensor of a risk: the one place that takes it from NumPy."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatmin._utils.arrays import check_readable
from flatmin.risk import Risk
from flatmin.risk.arguments import check_point, check_risk

__all__ = ["Point", "as_one_point", "as_point", "point_tensor"]

Point: TypeAlias = Tensor | NDArray[Any]


def as_point(risk: Risk, theta: Point, name: str = "theta") -> Tensor:
    """Return θ, or several chains of it, as a tensor.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
        An array, such as ``params_``, becomes a tensor of the risk's dtype on its
        device. A tensor stays as it is.
    name : str, default="theta"
        For messages.

    Returns
    -------
    Tensor of shape (\\*chains, D)

    Raises
    ------
    TypeError
        If the risk is none, or θ does not hold floating numbers.
    ValueError
        If θ has not D numbers, or an array has masked entries.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.eye(2), torch.zeros(1, 2))
    >>> as_point(risk, np.ones(2))
    tensor([1., 1.])
    """
    check_risk(risk)
    tensor = point_tensor(risk, theta, name)
    check_point(risk, tensor, name)
    return tensor


def as_one_point(risk: Risk, theta: Point, what: str) -> Tensor:
    """Return θ as a tensor, for what is not defined for several chains.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (D,)
    what : str
        For the message.

    Returns
    -------
    Tensor of shape (D,)

    Raises
    ------
    ValueError
        If θ is several chains; others as from :func:`as_point`.
    """
    theta = as_point(risk, theta)
    if theta.ndim != 1:
        raise ValueError(
            f"{what} is of one θ, of shape (D,). Got {tuple(theta.shape)}; ask for one "
            "chain at a time."
        )
    return theta


def point_tensor(risk: Risk, theta: Point, name: str) -> Tensor:
    """Return an array as a tensor, whatever its shape; a tensor as it is."""
    if not isinstance(theta, np.ndarray):
        return theta
    check_readable(name, theta)
    if theta.dtype.kind != "f":
        raise TypeError(f"{name} must have a floating dtype. Got {theta.dtype}.")
    # A copy: PyTorch warns of arrays that are read-only.
    copied = torch.as_tensor(np.array(theta, dtype=np.float64))
    return copied.to(risk.device, risk.dtype)
