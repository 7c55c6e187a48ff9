"""Whether PyTorch's gradient is the derivative of L."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from flatmin.risk.autodiff.differences import DIFFERENCE_LIMITS, difference_step
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import evaluate_losses, losses_and_gradient
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.products.double_backward import DoubleBackward
from flatmin.risk.products.hessian_trial import AWAY, PROJECTION
from flatmin.risk.products.slopes import Slope, compare_slope
from flatmin.risk.rounding import leave_out_casts
from flatmin.risk.trials import random_like

__all__ = ["GradientTrial"]

# Smaller ones than for a gradient: along the gradient a loss changes fast.
_STEPS = {torch.float64: (1e-5, 1e-7), torch.float32: (1e-3, 1e-4)}
# What is tried first, and what is then tried in float64.
_SEEMING_STEPS = {torch.float64: (1e-5, 1e-6), torch.float32: (3e-4, 1e-4)}
_SEEMING_LIMITS = {torch.float64: 1e-4, torch.float32: 1e-3}
# Of a gradient in which the slopes of the outputs are of order one.
_SMALL = 1e-4


class GradientTrial:
    """Compares the gradient of some examples with differences of L.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    few : Chunk

    Attributes
    ----------
    error : float
        How far it is from the derivative of L; 0 where it is one.
    """

    def __init__(self, model: FlatModel, loss: ExampleLoss, few: Chunk) -> None:
        self._parts = model, loss, few
        self._tried_at: float | None = None
        self._is_checked = False
        self.error = 0.0

    def warn(self) -> None:
        """Try it at the bound θ.

        Warns
        -----
        UserWarning
            If it is not the derivative of L.
        """
        self._try(self._parts[0].theta())
        if self.error:
            warnings.warn(
                "The gradient that PyTorch gives is not the derivative of L: along a "
                f"direction they differ by {self.error:.1e} of it. A function in the "
                "module or a hook changes it, as gradient reversal, a multiplier of "
                "the gradient, or a straight-through estimator. What is made of it "
                "(∇L, gᵢ, Σ, G) is PyTorch's, as an optimizer sees it; H v is refused.",
                UserWarning,
                stacklevel=7,
            )

    def check(self, theta: Tensor) -> None:
        """Raise if it is not the derivative of L; tried again at the first call.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Raises
        ------
        ValueError
            If it is not.
        """
        if not self._is_checked:
            self._try(theta)
        self._is_checked = True
        if self.error:
            raise ValueError(
                "H v needs a gradient that is the derivative of L. Got one that "
                f"differs from it by {self.error:.1e} of its size: a function in the "
                "module or a hook changes it, and no matrix is its derivative and that "
                "of L. Take that out of the module (a multiplier of 1), or take what "
                "needs first derivatives only, such as the Gauss-Newton matrix and Σ."
            )

    def _try(self, theta: Tensor) -> None:
        size = float(theta.double().norm())  # in place of θ itself
        if size != self._tried_at:
            self._parts[0].bind(theta)
            self.error = max(self.error, _gradient_off(*self._parts))
        self._tried_at = size


def _gradient_off(model: FlatModel, loss: ExampleLoss, few: Chunk) -> float:
    """Return how far the gradient is from the derivative of L at the bound θ.

    What seems wrong in the model's own precision is tried in float64.

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
        for seed in (None, 4, 5, 6):  # beside θ where that is at a kink
            if seed is not None:
                v = random_like(at, seed)
                at = theta.double() + difference_step(at, v, AWAY) * v
            point = DoubleBackward(exact, exact_loss, at, few)
            slope = _loss_slope(exact, _seen(point), few, at)
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


def _seen(point: DoubleBackward) -> ExampleLoss:
    """Return the loss, or projections of the outputs where its gradient is small."""
    # Near a minimum a difference is mostly what the slope is not.
    ones = point.theta.new_ones(len(point.chunk.X))
    parts = point.model, point.loss, point.chunk
    point.model.bind(point.theta)
    gradient = losses_and_gradient(*parts, ones)[1]
    order_one = point.vjp(random_like(point.outputs, 0))
    is_small = bool(gradient.norm() <= _SMALL * order_one.norm())
    return PROJECTION if is_small else point.loss


def _seems_off(model: FlatModel, loss: ExampleLoss, few: Chunk, theta: Tensor) -> bool:
    """Compare the slope with differences at one step, or two, without graphs."""
    v, slope = _upwards(model, loss, few, theta)
    limit = _SEEMING_LIMITS[model.precision] * abs(float(slope))
    for step in _SEEMING_STEPS[model.precision]:
        h = difference_step(theta, v, step)
        sums = []
        for sign in (1, -1):
            model.bind(theta + sign * h * v)
            sums.append(evaluate_losses(model, loss, few).double().sum())
        if not abs(float((sums[0] - sums[1]) / (2 * h) - slope)) > limit:
            return False
    return True


def _loss_slope(
    model: FlatModel, loss: ExampleLoss, few: Chunk, theta: Tensor
) -> Slope:
    """Compare the slope with differences at two steps."""
    point = DoubleBackward(model, loss, theta, few)
    v, slope = _upwards(model, loss, few, theta)
    steps = _STEPS[model.precision]
    found = compare_slope(point, lambda ell, _: ell.sum().reshape(1), slope, v, steps)
    # A difference has the rounding of the losses, over the step.
    model.bind(theta)
    total = float(evaluate_losses(model, loss, few).abs().sum())
    h = float(difference_step(theta, v, steps[0]))
    eps = torch.finfo(model.precision).eps
    rounding = 10 * eps * total / (h * abs(float(slope)) or 1.0)
    return found._replace(off=found.off if found.off > rounding else 0.0)


def _upwards(
    model: FlatModel, loss: ExampleLoss, few: Chunk, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return where Σ ℓ̃ᵢ rises, each number by its own size, and the slope there."""
    model.bind(theta)
    ones = theta.new_ones(len(few.X))
    gradient = losses_and_gradient(model, loss, few, ones)[1]
    # Along itself a part of the gradient looks like all of it: something is added.
    other = random_like(theta, 0)
    moves = gradient.sign() + other
    v = theta.abs() * moves if theta.any() else gradient + gradient.norm() * other
    return v, (gradient.double() @ v.double()).reshape(1)
