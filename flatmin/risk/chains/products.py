"""Products with H, G and J of some examples at C values of θ, by backward passes.

No chain depends on another: the gradient of the sum over all of them is that of each.
No graph is kept: memory stays that of one block of chains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk.autodiff.isolation import check_autograd
from flatmin.risk.autodiff.kernels import twice_differentiable
from flatmin.risk.chains.kernels import ChainChunk, chain_losses, chain_outputs
from flatmin.risk.example_sums.scalars import inner_products
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel

__all__ = ["ChainProducts"]


class ChainProducts:
    """The part of some examples in the products at C values of θ.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    thetas : Tensor of shape (C, D)
    chunk : ChainChunk
    """

    def __init__(
        self, model: FlatModel, loss: ExampleLoss, thetas: Tensor, chunk: ChainChunk
    ) -> None:
        self.model = model
        self.loss = loss
        self.chunk = chunk
        self._thetas = thetas.detach().clone().requires_grad_()

    @torch.enable_grad()
    def hvp(self, v: Tensor) -> Tensor:
        """Return Σ ∇²ℓ̃ᵢ v of each chain; ``v`` of shape (C, D)."""
        with twice_differentiable(self.model.module):
            losses = chain_losses(self.model, self.loss, self._thetas, self.chunk)
            (slope,) = torch.autograd.grad(
                losses.sum(), self._thetas, create_graph=True
            )
        return _pull(slope, self._thetas, v)

    @torch.enable_grad()
    def fisher(self, v: Tensor) -> Tensor:
        """Return Σ Jᵢᵀ Hᵢ Jᵢ v of each chain; ``v`` of shape (C, D)."""
        outputs = self._outputs()
        Jv = self._push(outputs, v)
        y = self.chunk.examples.y
        HJv = self.loss.hessian_product(outputs.detach(), y, Jv)
        return _pull(outputs, self._thetas, self.chunk.examples.weigh(HJv))

    @torch.enable_grad()
    def jvp(self, v: Tensor) -> Tensor:
        """Return J v of each chain, shape (C, n, \\*output_shape)."""
        return self.chunk.by_chain(self._push(self._outputs(), v))

    @torch.enable_grad()
    def vjp(self, u: Tensor) -> Tensor:
        """Return Σ Jᵢᵀuᵢ of each chain; ``u`` of shape (C, n, \\*output_shape)."""
        return _pull(self._outputs(), self._thetas, u.flatten(0, 1))

    @torch.enable_grad()
    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀv of each chain, shape (C, n)."""
        outputs = self._outputs()
        leaf = outputs.detach().requires_grad_()
        losses = self.loss.per_example(leaf, self.chunk.examples.y)
        (slopes,) = torch.autograd.grad(losses.sum(), leaf)
        along = inner_products(slopes, self._push(outputs, v))
        return self.chunk.by_chain(self.chunk.examples.weigh(along))

    def _outputs(self) -> Tensor:
        with twice_differentiable(self.model.module):
            return chain_outputs(self.model, self._thetas, self.chunk)

    def _push(self, outputs: Tensor, v: Tensor) -> Tensor:
        """Return J v: the pullback Jᵀu is linear in u, and v is pulled back by it."""
        u = torch.zeros_like(outputs).requires_grad_()
        with twice_differentiable(self.model.module):
            (pulled,) = torch.autograd.grad(outputs, self._thetas, u, create_graph=True)
        return _pull(pulled, u, v)


def _pull(tensor: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
    if not tensor.requires_grad:  # it does not depend on the leaf
        check_autograd()
        return torch.zeros_like(leaf)
    (product,) = torch.autograd.grad(
        tensor, leaf, cotangents, retain_graph=True, materialize_grads=True
    )
    return product.detach()
