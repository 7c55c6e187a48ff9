"""Whether a product with H is the derivative of the gradient, and symmetric."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from flatmin.risk.autodiff.differences import (
    STEPS,
    central_difference,
    difference_step,
    disagreement,
)
from flatmin.risk.autodiff.held_constants import HeldConstants
from flatmin.risk.example_sums.scalars import (
    example_losses,
    inner_products,
)
from flatmin.risk.failures import NotTaken
from flatmin.risk.losses.callable_loss import CallableLoss
from flatmin.risk.products.double_backward import DoubleBackward
from flatmin.risk.products.ways import HESSIANS
from flatmin.risk.trials import asymmetry, random_like, tolerance

__all__ = ["AWAY", "PROJECTION", "hessian_off", "is_fitted", "losses_in"]

# How far from θ a derivative is tried again where θ is at a kink, relative to θ.
AWAY = 1e-2

_ROUNDINGS = 10  # that differences of slopes may be off by


def hessian_off(name: str, point: DoubleBackward) -> float:
    """Return how far H v is from symmetric; raise where it is no derivative."""
    # Of a large network a vector takes gigabytes in float64, and a graph several: no
    # more are held than are compared.
    Hb = HESSIANS[name](point, _direction(point, 2)).double()
    aHb, size_Hb = float(_direction(point, 1).double() @ Hb), float(Hb.norm())
    del Hb
    a = _direction(point, 1)
    Ha = HESSIANS[name](point, a)
    point.forget()
    asymmetric = asymmetry(a, Ha, _direction(point, 2), aHb, size_Hb)
    off = _gradient_off(point, Ha, a)
    if off is None:
        off = _off_nearby(name, point, a)
    if off:
        raise NotTaken(f"it differs by {off:.1e} from differences of the gradient")
    if asymmetric > tolerance(point.model.precision, 2):
        raise NotTaken(f"aᵀHb and bᵀHa differ by {asymmetric:.1e}")
    return asymmetric


def is_fitted(point: DoubleBackward) -> bool:
    """Say whether differences of the gradient are of its rounding.

    Slopes in the outputs are differences of numbers of order one, as p - y. At a loss
    of 1e-13 they are a few roundings of these, and do not change at all from step to
    step. Nor do those of a prediction that is sure and wrong, which are one.

    Returns
    -------
    bool
    """
    slope = _gradient(point, nullcontext())
    gradient, eps = slope(point.theta), torch.finfo(point.model.precision).eps
    order_one = point.vjp(random_like(point.outputs, 0))
    if bool(gradient.norm() <= eps**0.5 * order_one.norm()):
        return True
    v, step = _direction(point, 1), STEPS[point.model.precision][0]
    change = central_difference(slope, point.theta, v, step).norm()
    h = difference_step(point.theta, v, step)
    return bool(change * h <= _ROUNDINGS * eps * gradient.norm())


def _direction(point: DoubleBackward, seed: int) -> Tensor:
    """Return normal numbers, shape (D,), in the model's dtype."""
    return random_like(point.theta, seed).to(point.model.dtype)


def _projections(outputs: Tensor, _targets: Tensor) -> Tensor:
    return inner_products(outputs, random_like(outputs, 0))


PROJECTION = CallableLoss(_projections, name="projections")
PROJECTION.trust()


def _off_nearby(name: str, point: DoubleBackward, v: Tensor) -> float:
    """Return how far H v is off beside θ, where differences tell: not at a kink."""
    theta = point.theta
    try:
        for seed in (4, 5, 6):
            w = random_like(theta, seed)
            nearby = theta + difference_step(theta, w, AWAY) * w
            beside = DoubleBackward(point.model, point.loss, nearby, point.chunk)
            off = _gradient_off(beside, HESSIANS[name](beside, v), v)
            if off is not None:
                return off
        return 0.0
    finally:
        point.model.bind(theta)


def _gradient_off(point: DoubleBackward, product: Tensor, v: Tensor) -> float | None:
    """Return how far H v is from differences of the gradient, see ``disagreement``."""
    model = point.model
    options: Any = {"sizes": model.layout.sizes, "precision": model.precision}
    plain = _gradient(point, nullcontext())
    off = disagreement(product, plain, point.theta, v, **options)
    if not off:
        return off
    constants = HeldConstants()
    gradient = _gradient(point, constants)
    gradient(point.theta)
    if constants.n_held:
        off = disagreement(product, gradient, point.theta, v, **options)
    return off


def _gradient(
    point: DoubleBackward, context: AbstractContextManager[Any]
) -> Callable[[Tensor], Tensor]:
    """Return θ to Σ ∇ℓ̃ᵢ, with the network run in a context."""
    losses_at = losses_in(point, context)

    def gradient(theta: Tensor) -> Tensor:
        losses = losses_at(theta)
        del theta  # bound, which is a copy: nobody else holds it
        return point.model.gradient(losses, torch.ones_like(losses))

    return gradient


def losses_in(
    point: DoubleBackward, context: AbstractContextManager[Any]
) -> Callable[[Tensor], Tensor]:
    """Return θ to the ℓ̃ᵢ of a chunk, with the network run in a context.

    Parameters
    ----------
    point : DoubleBackward
    context : context manager

    Returns
    -------
    callable
    """

    @torch.enable_grad()
    def losses(theta: Tensor) -> Tensor:
        point.model.bind(theta)
        with context:
            return example_losses(point.model, point.loss, point.chunk)

    return losses
