"""A derivative along a direction against differences of its function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor

from flatmin.risk.autodiff.differences import (
    DIFFERENCE_LIMITS,
    STEPS,
    difference_step,
    half_jump,
    same_at_both,
)
from flatmin.risk.autodiff.held_constants import HeldConstants
from flatmin.risk.products.double_backward import DoubleBackward
from flatmin.risk.products.hessian_trial import losses_in

__all__ = ["Slope", "compare_slope"]


class Slope(NamedTuple):
    """A derivative against differences."""

    off: float  # at the better of two steps
    at_kink: bool  # they differ because there is none


def compare_slope(
    point: DoubleBackward,
    function: Callable[[Tensor, Tensor], Tensor],
    product: Tensor,
    v: Tensor,
    steps: tuple[float, float] | None = None,
) -> Slope:
    """Compare a derivative along v with differences, of a function of ℓ̃ and θ.

    At two steps, and with constants by decree held where that makes a difference.

    Parameters
    ----------
    point : DoubleBackward
    function : callable
        (ℓ̃, θ) to what is differentiated.
    product : Tensor
        The derivative.
    v : Tensor of shape (D,)
    steps : tuple of two float, default=None
        The larger one first; None is :data:`STEPS`.

    Returns
    -------
    Slope
    """
    theta, precision = point.theta, point.model.precision
    limit = DIFFERENCE_LIMITS[precision]

    def off(context: AbstractContextManager[Any]) -> Slope:
        losses = losses_in(point, context)

        def at(theta: Tensor) -> Tensor:
            return function(losses(theta), theta).detach()

        here = at(theta)  # what is held is held here
        # Not relative to a difference: across a kink it can be of any size.
        size = product.norm() or 1.0
        offs, jumps = [], []
        for step in steps or STEPS[precision]:
            h = difference_step(theta, v, step)
            ahead, behind = at(theta + h * v), at(theta - h * v)
            offs.append(((ahead - behind) / (2 * h) - product).norm() / size)
            jumps.append(half_jump(ahead, here, behind, h).norm() / size)
        off = float(min(offs))
        # Of a smooth function a jump falls with the step. One that does not is of a
        # kink at θ itself: a difference is then about the same at any step.
        jumps_here = bool(jumps[1] > limit) and bool(jumps[1] > jumps[0] / 10)
        at_kink = jumps_here or not bool(same_at_both(*offs))
        return Slope(off, off > limit and at_kink)

    constants = HeldConstants()
    found = off(nullcontext())
    if found.off > limit:
        held = off(constants)
        found = held if constants.n_held else found
    return found
