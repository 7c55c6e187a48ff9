"""A number and how well it is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate", "exact", "quotient", "square"]


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, which is 0 where nothing is drawn."""

    value: Tensor  # (*batch), float64
    stderr: Tensor  # the same shape

    def __float__(self) -> float:
        return float(self.value)


def exact(value: Tensor) -> Estimate:
    """Return a number without a random error; NaN, which is no number, has NaN.

    Parameters
    ----------
    value : Tensor

    Returns
    -------
    Estimate
    """
    value = value.double()
    return Estimate(value, torch.where(value.isnan(), torch.nan, 0.0))


def square(number: Estimate) -> Estimate:
    """Return a², its error to first order: not the product of independent factors."""
    return Estimate(number.value.square(), 2 * number.value.abs() * number.stderr)


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
    return Estimate(value, stderr)
