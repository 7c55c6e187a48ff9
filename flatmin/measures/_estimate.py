"""How errors go on from estimates to what is made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg import Estimate

__all__ = ["exact", "quotient", "square"]


def exact(value: Tensor, n_matvecs: int = 0) -> Estimate:
    """Return a number without a random error; NaN, which is no number, has NaN.

    Parameters
    ----------
    value : Tensor
    n_matvecs : int, default=0
        What it has cost.

    Returns
    -------
    Estimate
    """
    value = value.double()
    stderr = torch.zeros_like(value).masked_fill(value.isnan(), torch.nan)
    return Estimate(value, stderr, n_matvecs)


def square(number: Estimate) -> Estimate:
    """Return a², its error to first order: not the product of independent factors."""
    stderr = 2 * number.value.abs() * number.stderr
    return Estimate(number.value.square(), stderr, number.n_matvecs)


def quotient(above: list[Estimate], below: list[Estimate]) -> Estimate:
    """Return Π above / Π below of independent estimates, its error to first order.

    The caller sees to it that no factor below is 0.

    Parameters
    ----------
    above : list of Estimate
    below : list of Estimate

    Returns
    -------
    Estimate
    """
    value = torch.ones_like(above[0].value)
    stderr = torch.zeros_like(value)  # factor by factor, which works at a value of 0
    for factor in above:
        stderr = torch.hypot(stderr * factor.value, value * factor.stderr)
        value = value * factor.value
    for factor in below:
        value = value / factor.value
        stderr = torch.hypot(stderr, value * factor.stderr) / factor.value.abs()
    n_matvecs = sum(factor.n_matvecs for factor in [*above, *below])
    return Estimate(value, stderr, n_matvecs)
