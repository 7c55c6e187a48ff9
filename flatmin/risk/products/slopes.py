"""A derivative along a direction against differences of its function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatmin.risk.autodiff.differences import (
    DIFFERENCE_LIMITS,
    STEPS,
    difference_step,
    half_jump,
    same_at_both,
)
from flatmin.risk.autodiff.held_constants import HeldConstants
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import evaluate_losses, losses_and_gradient
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.products.double_backward import DoubleBackward
from flatmin.risk.products.hessian_trial import AWAY, PROJECTION, is_fitted, losses_in
from flatmin.risk.rounding import leave_out_casts
from flatmin.risk.trials import random_like

__all__ = ["Slope", "compare_slope", "gradient_off"]

# Smaller ones than for a gradient: along the gradient a loss changes fast.
_STEPS_OF_LOSSES = {torch.float64: (1e-5, 1e-7), torch.float32: (1e-3, 1e-4)}


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


def gradient_off(model: FlatModel, loss: ExampleLoss, few: Chunk) -> float:
    """Return how far PyTorch's gradient is from the derivative of L at the bound θ.

    In the model's own precision first. What seems wrong there is tried in float64, and
    beside θ where that is at a kink.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    few : Chunk

    Returns
    -------
    float
        Relative to the gradient; 0 where it is right, or where differences cannot tell.

    Raises
    ------
    OutOfMemoryError
        As it comes.
    """
    theta = model.theta()
    try:
        if not _seems_off(model, loss, few, theta):
            return 0.0
        exact, exact_loss = model.to(torch.float64), loss.to(dtype=torch.float64)
        few, at = few.double(), theta.double()
        if not leave_out_casts(exact, exact_loss, few):
            return 0.0
        for seed in (None, 4, 5, 6):
            if seed is not None:
                v = random_like(at, seed)
                at = theta.double() + difference_step(at, v, AWAY) * v
            point = DoubleBackward(exact, exact_loss, at, few)
            # Where losses are rounding, projections of the outputs show the network.
            seen = PROJECTION if is_fitted(point) else exact_loss
            slope = _loss_slope(exact, seen, few, at)
            if not slope.at_kink:
                wrong = slope.off > DIFFERENCE_LIMITS[exact.precision]
                return slope.off if wrong else 0.0
        return 0.0
    except torch.OutOfMemoryError:
        raise
    except Exception:  # there may be no loss at other parameters
        return 0.0
    finally:
        model.bind(theta)


def _seems_off(model: FlatModel, loss: ExampleLoss, few: Chunk, theta: Tensor) -> bool:
    """Compare the slope with a difference at one step, without graphs."""
    v, slope = _upwards(model, loss, few, theta)
    h = difference_step(theta, v, _STEPS_OF_LOSSES[model.precision][0])
    sums = []
    for sign in (1, -1):
        model.bind(theta + sign * h * v)
        sums.append(evaluate_losses(model, loss, few).double().sum())
    off = float((sums[0] - sums[1]) / (2 * h) - slope)
    return abs(off) > DIFFERENCE_LIMITS[model.precision] * abs(float(slope))


def _loss_slope(
    model: FlatModel, loss: ExampleLoss, few: Chunk, theta: Tensor
) -> Slope:
    """Compare the slope with differences at two steps."""
    point = DoubleBackward(model, loss, theta, few)
    v, slope = _upwards(model, loss, few, theta)
    steps = _STEPS_OF_LOSSES[model.precision]
    return compare_slope(point, lambda ell, _: ell.sum().reshape(1), slope, v, steps)


def _upwards(
    model: FlatModel, loss: ExampleLoss, few: Chunk, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return where Σ ℓ̃ᵢ rises, each number by its own size, and the slope there."""
    model.bind(theta)
    ones = theta.new_ones(len(few.X))
    gradient = losses_and_gradient(model, loss, few, ones)[1]
    v = theta.abs() * gradient.sign() if theta.any() else gradient
    return v, (gradient.double() @ v.double()).reshape(1)
