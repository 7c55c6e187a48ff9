"""Central differences, and what they can tell of a derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatmin.risk.trials import difference

__all__ = [
    "DIFFERENCE_LIMITS",
    "STEPS",
    "central_difference",
    "difference_step",
    "disagreement",
    "half_jump",
    "same_at_both",
]

# Relative to the size of what is moved. In float64 the first is mostly off by the
# third derivative, the second by rounding, near 1e-9; a factor of a hundred lies
# between them.
STEPS = {torch.float64: (1e-5, 1e-7), torch.float32: (1e-2, 1e-3)}
# How much a derivative may differ from a difference at these steps, relative to its
# own size.
DIFFERENCE_LIMITS = {torch.float64: 1e-4, torch.float32: 5e-2}


def central_difference(
    gradient: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor, step: float
) -> Tensor:
    """Return (g(θ + hv) - g(θ - hv)) / 2h with h = step ‖θ‖ / ‖v‖.

    Parameters
    ----------
    gradient : callable
        θ to g(θ), shape (D,).
    theta : Tensor of shape (D,)
    v : Tensor of shape (D,)
        In the dtype of θ, or in a higher one.
    step : float

    Returns
    -------
    Tensor of shape (D,)
    """
    h = difference_step(theta, v, step)
    change = gradient(_moved(theta, h, v))
    change = change - gradient(_moved(theta, -h, v))
    change /= 2 * h
    return change


def _moved(theta: Tensor, h: Tensor, v: Tensor) -> Tensor:
    """Return θ + hv; of a large network each copy takes gigabytes."""
    moved = h * v
    moved += theta
    return moved


def difference_step(theta: Tensor, v: Tensor, step: float) -> Tensor:
    """Return h = step ‖θ‖ / ‖v‖, with 1 for a norm of 0.

    Parameters
    ----------
    theta : Tensor of shape (D,)
    v : Tensor of shape (D,)
    step : float

    Returns
    -------
    Tensor of shape ()
    """
    size, length = (
        t.double().norm() if t.any() else t.new_ones((), dtype=torch.float64)
        for t in (theta, v)
    )
    return step * size / length


def same_at_both(wide: Tensor, narrow: Tensor) -> Tensor:
    """Say whether a derivative is off by about the same at two steps of a difference.

    A wrong derivative is. What falls with the step is the truncation of the difference;
    what grows is a kink (of ReLU at 0) or rounding.

    Parameters
    ----------
    wide : Tensor
        By how much it is off at the larger step.
    narrow : Tensor
        At the smaller one.

    Returns
    -------
    Tensor
        Of bools, in their shape.
    """
    return (narrow <= 3 * wide) & (narrow >= wide / 3)


def half_jump(ahead: Tensor, here: Tensor, behind: Tensor, h: Tensor) -> Tensor:
    """Return half of what two one-sided differences of a gradient differ by.

    Where the second derivative itself jumps (Huber's loss at |f - y| = 1), a central
    difference is the mean of both sides and PyTorch's the value of one: they differ by
    this much at any step, and neither is wrong. Elsewhere it is of the order of h.

    Parameters
    ----------
    ahead, here, behind : Tensor
        g at x + hv, x and x - hv.
    h : Tensor
        Broadcast against them.

    Returns
    -------
    Tensor
    """
    return (ahead + behind - 2 * here).abs() / (2 * h)


def disagreement(
    product: Tensor,
    gradient: Callable[[Tensor], Tensor],
    theta: Tensor,
    v: Tensor,
    *,
    sizes: tuple[int, ...],
    precision: torch.dtype,
) -> float | None:
    """Return by how much H v is wrong; None where differences cannot tell.

    See :func:`same_at_both`.

    Parameters
    ----------
    product : Tensor of shape (D,)
        H v.
    gradient : callable
        θ to g(θ).
    theta : Tensor of shape (D,)
    v : Tensor of shape (D,)
    sizes : tuple of int
        Of the parameters.
    precision : torch.dtype
        Of the gradient: of θ, or less where the module casts.

    Returns
    -------
    float or None
        0 where it is right.
    """
    limit = DIFFERENCE_LIMITS[precision]
    narrow = central_difference(gradient, theta, v, STEPS[precision][1])
    if difference(product, narrow, sizes) <= limit:
        return 0.0
    wide = central_difference(gradient, theta, v, STEPS[precision][0])
    # These errors are not divided by the differences: at a kink a difference is as
    # large as its error.
    far, near = ((product - found).norm() for found in (wide, narrow))
    if not bool(same_at_both(far, near)):
        return None
    h = difference_step(theta, v, STEPS[precision][1])
    ahead, here, behind = (gradient(theta + s * h * v) for s in (1, 0, -1))
    left = (product - narrow).abs() - half_jump(ahead, here, behind, h)
    off = difference(narrow + left.clamp(min=0), narrow, sizes)
    return off if off > limit else 0.0
