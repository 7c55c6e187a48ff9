"""H v as a central difference of the gradient: a check, and a way of last resort."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk.autodiff.differences import DIFFERENCE_LIMITS, central_difference
from flatmin.risk.autodiff.held_constants import HeldConstants
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import example_losses
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.rounding import leave_out_casts
from flatmin.risk.trials import difference

__all__ = ["FiniteDifference"]

# From which the one is chosen at which a quarter of it gives the same.
_TRIED_STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
_N_TRIED = 16  # examples on which it is tried whether casts can be left out


class FiniteDifference:
    """N H v of one chunk by central differences of the gradient in float64.

    Four gradients a product: at a step and at a quarter of it, which have to agree.
    What the module casts to less than float64 is taken for float64 where that can be.
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
        self._loss = loss.to(dtype=torch.float64)
        self._chunk = chunk.double()
        self._theta = theta.double()
        self._step: float | None = None
        self._dtype = theta.dtype
        X, y = self._chunk.X[:_N_TRIED], self._chunk.y[:_N_TRIED]
        few = Chunk(X, y, None, slice(0, len(X)))
        leave_out_casts(self._model, self._loss, few)
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
        if not off <= DIFFERENCE_LIMITS[torch.float64]:
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
