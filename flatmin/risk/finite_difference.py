"""H v as a central difference of the gradient: a check, and a way of last resort."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatmin.risk.chunks import Chunk
from flatmin.risk.float64_copy import chunk_in_float64, loss_in_float64
from flatmin.risk.gradients import example_losses
from flatmin.risk.held_constants import HeldConstants
from flatmin.risk.losses import ExampleLoss
from flatmin.risk.model import FlatModel
from flatmin.risk.trials import difference

__all__ = ["FiniteDifference", "central_difference", "disagreement"]

# Relative to ‖θ‖. In float64 the first is mostly off by the third derivative, the
# second by rounding, near 1e-9; a factor of a hundred lies between them.
_STEPS = (1e-5, 1e-7)
_STEPS_FLOAT32 = (1e-2, 1e-3)
# From which the one is chosen at which a quarter of it gives the same.
_TRIED_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
_MOST_OFF = 1e-4


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
    step : float

    Returns
    -------
    Tensor of shape (D,)
    """
    size, length = (t.norm() if t.any() else t.new_ones(()) for t in (theta, v))
    h = step * size / length
    return (gradient(theta + h * v) - gradient(theta - h * v)) / (2 * h)


def disagreement(
    product: Tensor,
    gradient: Callable[[Tensor], Tensor],
    theta: Tensor,
    v: Tensor,
    sizes: tuple[int, ...],
) -> float:
    """Return by how much H v is wrong; 0 where differences of the gradient cannot tell.

    A wrong derivative differs by the same at any step. What falls with the step is the
    truncation of the difference; what grows is a kink (of ReLU at 0) or rounding.

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

    Returns
    -------
    float
    """
    exact = theta.dtype == torch.float64
    steps = _STEPS if exact else _STEPS_FLOAT32
    wide, narrow = (central_difference(gradient, theta, v, step) for step in steps)
    # Not relative to the differences themselves: at a kink they are as large as that.
    far, near = (float((product - found).norm()) for found in (wide, narrow))
    if near != far and not far / 3 <= near <= far * 3:
        return 0.0
    off = difference(product, narrow, sizes)
    return off if off > (1e-4 if exact else 5e-2) else 0.0


class FiniteDifference:
    """N H v of one chunk by central differences of the gradient in float64.

    Four gradients a product: at a step and at a quarter of it, which have to agree.
    What the module detaches is held at its values at θ, as in every other H v.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    theta : Tensor of shape (D,)
    chunk : Chunk

    Attributes
    ----------
    error : float
        The largest relative difference between the two steps so far.
    """

    def __init__(
        self, model: FlatModel, loss: ExampleLoss, theta: Tensor, chunk: Chunk
    ) -> None:
        model.bind(theta)
        self._model = model.to(torch.float64)
        self._loss = loss_in_float64(loss)
        self._chunk = chunk_in_float64(chunk)
        self._theta = theta.double()
        self._step: float | None = None
        self._dtype = theta.dtype
        self._constants = HeldConstants()
        self._losses(self._theta)  # what is held is held here
        self.error = 0.0

    def hvp(self, v: Tensor) -> Tensor:
        """Return Σ ∇²ℓ̃ᵢ v over the chunk.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)

        Raises
        ------
        ValueError
            If no two steps agree.
        """
        v = v.double()
        steps = _TRIED_STEPS if self._step is None else (self._step,)
        found = {step: self._at(step, v) for step in steps}
        self._step = min(found, key=lambda step: found[step][1])
        product, off = found[self._step]
        if not off <= _MOST_OFF:
            raise ValueError(
                "hvp='finite_difference' needs a gradient that is smooth around θ. Got "
                f"differences at two steps that disagree by {off:.1e}, as at a kink."
            )
        self.error = max(self.error, off)
        return product.to(self._dtype)

    def _at(self, step: float, v: Tensor) -> tuple[Tensor, float]:
        wide, narrow = (
            central_difference(self._gradient, self._theta, v, s)
            for s in (step, step / 4)
        )
        # The truncation goes with the square of the step: this leaves its fourth power.
        return (16 * narrow - wide) / 15, difference(wide, narrow)

    def _gradient(self, theta: Tensor) -> Tensor:
        losses = self._losses(theta)
        return self._model.gradient(losses, torch.ones_like(losses))

    @torch.enable_grad()
    def _losses(self, theta: Tensor) -> Tensor:
        self._model.bind(theta)
        with self._constants:
            return example_losses(self._model, self._loss, self._chunk)
