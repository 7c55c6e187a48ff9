"""Products with H, G and J of one chunk by backward passes: the reference path.

The module is differentiated as it is, by its own parameters, so whatever autograd sees
counts, also parameters that are reached by a second name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flatmin.risk.autodiff.kernels import twice_differentiable
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.flat_parameters import joined
from flatmin.risk.network.model import FlatModel

__all__ = ["DoubleBackward"]


class DoubleBackward:
    """The part of one chunk in the products at one θ.

    The graphs of the gradient and of the pullback are built when they are first needed
    and kept: let go of the object, or call :meth:`forget`, to free them.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    theta : Tensor of shape (D,)
        In the model's dtype, or in a lower one.
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
        return self._pull(self._gradient, self.model.layout.views(v))

    def jvp(self, v: Tensor) -> Tensor:
        """Return J v, the derivative of the chunk's outputs along v.

        The pullback Jᵀu is linear in u, and pulling v back through it gives J v: right
        where PyTorch differentiates the backward pass of every function.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (n, \\*output_shape)
        """
        graph = self._pullback
        pulled = zip(graph.pulled, self.model.layout.views(v), strict=True)
        linear = [(part, along) for part, along in pulled if part.requires_grad]
        if not linear:
            return torch.zeros_like(graph.cotangents)
        parts, along = zip(*linear, strict=True)
        self.model.bind(self.theta)
        (product,) = torch.autograd.grad(
            parts,
            graph.cotangents,
            along,
            retain_graph=True,
            materialize_grads=True,
        )
        return product.detach()

    def vjp(self, u: Tensor) -> Tensor:
        """Return Σ Jᵢᵀ uᵢ over the chunk.

        Parameters
        ----------
        u : Tensor of shape (n, \\*output_shape)

        Returns
        -------
        Tensor of shape (D,)
        """
        outputs = self._outputs
        edge = get_gradient_edge(outputs) if outputs.requires_grad else None
        return self._pull([edge], [u])

    def forget(self) -> None:
        """Let go of the graphs; they are built anew when they are needed."""
        for name in ("_outputs", "_gradient", "_pullback"):
            vars(self).pop(name, None)

    @property
    def outputs(self) -> Tensor:
        """Of the chunk, shape (n, \\*output_shape)."""
        return self._outputs.detach()

    @cached_property
    def _outputs(self) -> Tensor:
        self.model.bind(self.theta)
        with torch.enable_grad(), twice_differentiable(self.model.module):
            return self.model(self.chunk.X)

    @cached_property
    def _gradient(self) -> list[GradientEdge | None]:
        """The graph of Σ ∇ℓ̃ᵢ of the chunk, by parameter; None for a constant."""
        self.model.bind(self.theta)
        with torch.enable_grad(), twice_differentiable(self.model.module):
            outputs = self.model(self.chunk.X)
            losses = self.chunk.weigh(self.loss.per_example(outputs, self.chunk.y))
            parts = self.model.gradients(losses.sum(), create_graph=True)
        # Without the numbers, which nobody reads.
        return [get_gradient_edge(p) if p.requires_grad else None for p in parts]

    @cached_property
    def _pullback(self) -> _PullbackGraph:
        cotangents = torch.zeros_like(self._outputs).requires_grad_()
        self.model.bind(self.theta)  # the outputs may be there since another θ was
        with torch.enable_grad(), twice_differentiable(self.model.module):
            pulled = self.model.gradients(self._outputs, cotangents, create_graph=True)
        return _PullbackGraph(cotangents, pulled)

    def _pull(
        self, edges: Sequence[GradientEdge | None], cotangents: Sequence[Tensor]
    ) -> Tensor:
        """Return Σ ∂tᵀc/∂θ, shape (D,), of what depends on θ."""
        # A checkpoint runs its part of the network again, on what is bound then.
        self.model.bind(self.theta)
        pairs = zip(edges, cotangents, strict=True)
        depends = [(edge, c) for edge, c in pairs if edge is not None]
        if not depends:
            return torch.zeros_like(self.theta, dtype=self.model.dtype)
        some, along = zip(*depends, strict=True)
        return joined(self.model.gradients(some, along, retain_graph=True))


class _PullbackGraph(NamedTuple):
    cotangents: Tensor  # (n, *output_shape) leaf u
    pulled: list[Tensor]  # Jᵀu by parameter, with its graph
