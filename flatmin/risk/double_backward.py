"""Products with H, G and J of one chunk by double backward: the plain path.

Any module that autograd can differentiate twice is taken.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from flatmin.risk.chunks import Chunk
from flatmin.risk.kernels import twice_differentiable
from flatmin.risk.losses import ExampleLoss
from flatmin.risk.model import FlatModel

__all__ = ["DoubleBackward"]


class DoubleBackward:
    """The part of one chunk in the products at one θ.

    The graphs of the gradient and of the pullback are built when they are first needed
    and kept: let go of the object to free them.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    theta : Tensor of shape (D,)
    chunk : Chunk
    """

    def __init__(
        self, model: FlatModel, loss: ExampleLoss, theta: Tensor, chunk: Chunk
    ) -> None:
        self.model = model
        self.loss = loss
        self.theta = theta
        self.chunk = chunk

    def hvp(self, v: Tensor) -> Tensor:
        """Return Σ ∇²ℓ̃ᵢ v over the chunk.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        graph = self._gradient
        return self._pull(graph.gradient, graph.theta, v)

    def ggn(self, v: Tensor) -> Tensor:
        """Return Σ Jᵢᵀ Hᵢ Jᵢ v over the chunk.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        outputs = self._pullback.outputs.detach()
        HJv = self.loss.hessian_product(outputs, self.chunk.y, self.jvp(v))
        return self.vjp(self.chunk.weigh(HJv))

    def jvp(self, v: Tensor) -> Tensor:
        """Return J v, the derivative of the chunk's outputs along v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (n, \\*output_shape)
        """
        graph = self._pullback
        return self._pull(graph.pulled, graph.cotangents, v)

    def vjp(self, u: Tensor) -> Tensor:
        """Return Σ Jᵢᵀ uᵢ over the chunk.

        Parameters
        ----------
        u : Tensor of shape (n, \\*output_shape)

        Returns
        -------
        Tensor of shape (D,)
        """
        graph = self._pullback
        return self._pull(graph.outputs, graph.theta, u)

    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀ v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (n,)
        """
        leaf = self._pullback.outputs.detach().requires_grad_()
        with torch.enable_grad():
            total = self.loss.per_example(leaf, self.chunk.y).sum()
        (slopes,) = torch.autograd.grad(total, leaf)
        along = (slopes * self.jvp(v)).reshape(len(slopes), -1).sum(1)
        return self.chunk.weigh(along)

    @cached_property
    def _gradient(self) -> _GradientGraph:
        theta = self._bound().requires_grad_()
        with torch.enable_grad(), twice_differentiable(self.model.module):
            outputs = self.model.functional(theta, self.chunk.X)
            losses = self.chunk.weigh(self.loss.per_example(outputs, self.chunk.y))
            (gradient,) = torch.autograd.grad(losses.sum(), theta, create_graph=True)
        return _GradientGraph(theta, gradient)

    @cached_property
    def _pullback(self) -> _PullbackGraph:
        # J v without forward mode: the pullback Jᵀu is linear in u, and pulling v
        # back through it gives J v.
        theta = self._bound().requires_grad_()
        with torch.enable_grad(), twice_differentiable(self.model.module):
            outputs = self.model.functional(theta, self.chunk.X)
            cotangents = torch.zeros_like(outputs).requires_grad_()
            (pulled,) = torch.autograd.grad(
                outputs, theta, cotangents, create_graph=True
            )
        return _PullbackGraph(theta, outputs, cotangents, pulled)

    def _bound(self) -> Tensor:
        # A checkpoint runs its part of the network again, on what is bound then.
        self.model.bind(self.theta)
        return self.theta.clone()

    def _pull(self, tensors: Tensor, leaf: Tensor, cotangents: Tensor) -> Tensor:
        if not tensors.requires_grad:
            return torch.zeros_like(leaf)
        self._bound()
        (product,) = torch.autograd.grad(
            tensors,
            leaf,
            cotangents,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return product.detach()


class _GradientGraph(NamedTuple):
    theta: Tensor  # (D,) leaf
    gradient: Tensor  # (D,) Σ ∇ℓ̃ᵢ of the chunk, with its graph


class _PullbackGraph(NamedTuple):
    theta: Tensor  # (D,) leaf
    outputs: Tensor  # (n, *output_shape)
    cotangents: Tensor  # (n, *output_shape) leaf u
    pulled: Tensor  # (D,) Jᵀu, with its graph
