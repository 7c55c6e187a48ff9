"""Products with H, G and J at one θ by double backward: the plain path.

Any module that autograd can differentiate twice is taken. The graph of the gradient
is kept between products when all data fit into one chunk, and built anew for each
product otherwise, so that memory stays bounded by a chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from flatmin.risk.chunks import Chunk
from flatmin.risk.losses import ExampleLoss
from flatmin.risk.model import FlatModel

__all__ = ["DoubleBackward"]


class DoubleBackward:
    """A risk prepared at one θ.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    chunks : callable
        Returns an iterator over the data.
    theta : Tensor of shape (D,)
        Copied.
    n_examples : int
        N.
    keep_graph : bool
        Whether one chunk holds all data.

    Attributes
    ----------
    path : str
        Which implementation this is: "double_backward".
    """

    path = "double_backward"

    def __init__(
        self,
        model: FlatModel,
        loss: ExampleLoss,
        chunks: Callable[[], Iterator[Chunk]],
        theta: Tensor,
        n_examples: int,
        *,
        keep_graph: bool,
    ) -> None:
        self.model = model
        self.loss = loss
        self.theta = theta.detach().clone()
        self.n_examples = n_examples
        self._chunks = chunks
        self._keep = keep_graph
        self._gradient: _GradientGraph | None = None
        self._pullback: _PullbackGraph | None = None

    def hvp(self, v: Tensor) -> Tensor:
        """Return H v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        total = torch.zeros_like(self.theta)
        for graph in self._gradient_graphs():
            total += _pull(graph.gradient, graph.theta, v, keep=self._keep)
        return total / self.n_examples

    def ggn(self, v: Tensor) -> Tensor:
        """Return G v = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        total = torch.zeros_like(self.theta)
        for chunk, graph in self._pullback_graphs():
            Jv = _pull(graph.pulled, graph.cotangents, v, keep=True)
            outputs = graph.outputs.detach()
            HJv = self.loss.hessian_product(outputs, chunk.y, Jv)
            if chunk.weights is not None:
                HJv = HJv * chunk.weights.view(-1, *(1 for _ in HJv.shape[1:]))
            total += _pull(graph.outputs, graph.theta, HJv, keep=self._keep)
        return total / self.n_examples

    def jvp(self, v: Tensor) -> Tensor:
        """Return J v, the derivative of all outputs along v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (N, \\*output_shape)
        """
        parts = [
            _pull(graph.pulled, graph.cotangents, v, keep=self._keep)
            for _, graph in self._pullback_graphs()
        ]
        return torch.cat(parts)

    def vjp(self, u: Tensor) -> Tensor:
        """Return Jᵀ u = Σ Jᵢᵀ uᵢ.

        Parameters
        ----------
        u : Tensor of shape (N, \\*output_shape)

        Returns
        -------
        Tensor of shape (D,)
        """
        total = torch.zeros_like(self.theta)
        for chunk, graph in self._pullback_graphs():
            part = u[chunk.rows]
            total += _pull(graph.outputs, graph.theta, part, keep=self._keep)
        return total

    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀ v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (N,)
        """
        parts = []
        for chunk, graph in self._pullback_graphs():
            Jv = _pull(graph.pulled, graph.cotangents, v, keep=self._keep)
            leaf = graph.outputs.detach().requires_grad_()
            with torch.enable_grad():
                total = self.loss.per_example(leaf, chunk.y).sum()
            (slopes,) = torch.autograd.grad(total, leaf)
            slope = (slopes * Jv).reshape(len(Jv), -1).sum(1)
            parts.append(slope if chunk.weights is None else slope * chunk.weights)
        return torch.cat(parts)

    def _gradient_graphs(self) -> Iterator[_GradientGraph]:
        if self._gradient is not None:
            yield self._gradient
            return
        for chunk in self._chunks():
            graph = self._build_gradient(chunk)
            if self._keep:
                self._gradient = graph
            yield graph

    def _pullback_graphs(self) -> Iterator[tuple[Chunk, _PullbackGraph]]:
        for chunk in self._chunks():
            graph = self._pullback or self._build_pullback(chunk)
            if self._keep:
                self._pullback = graph
            yield chunk, graph

    @torch.enable_grad()
    def _build_gradient(self, chunk: Chunk) -> _GradientGraph:
        theta = self.theta.clone().requires_grad_()
        with twice_differentiable(self.model.module):
            losses = self.loss.per_example(
                self.model.functional(theta, chunk.X), chunk.y
            )
            if chunk.weights is not None:
                losses = losses * chunk.weights
            (gradient,) = torch.autograd.grad(losses.sum(), theta, create_graph=True)
        return _GradientGraph(theta, gradient)

    @torch.enable_grad()
    def _build_pullback(self, chunk: Chunk) -> _PullbackGraph:
        # J v without forward mode: the pullback Jᵀu is linear in u, and pulling v
        # back through it gives J v.
        theta = self.theta.clone().requires_grad_()
        with twice_differentiable(self.model.module):
            outputs = self.model.functional(theta, chunk.X)
            cotangents = torch.zeros_like(outputs).requires_grad_()
            (pulled,) = torch.autograd.grad(
                outputs, theta, cotangents, create_graph=True
            )
        return _PullbackGraph(theta, outputs, cotangents, pulled)


@dataclass(frozen=True)
class _GradientGraph:
    theta: Tensor  # (D,) leaf
    gradient: Tensor  # (D,) Σ ∇ℓ̃ᵢ of the chunk, with its graph


@dataclass(frozen=True)
class _PullbackGraph:
    theta: Tensor  # (D,) leaf
    outputs: Tensor  # (n, *output_shape)
    cotangents: Tensor  # (n, *output_shape) leaf u
    pulled: Tensor  # (D,) Jᵀu, with its graph


def _pull(tensors: Tensor, leaf: Tensor, cotangents: Tensor, *, keep: bool) -> Tensor:
    if not tensors.requires_grad:
        return torch.zeros_like(leaf)
    (product,) = torch.autograd.grad(
        tensors,
        leaf,
        cotangents,
        retain_graph=keep,
        allow_unused=True,
        materialize_grads=True,
    )
    return product.detach()


@contextlib.contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Choose kernels that have a second derivative.

    The fused attention kernels and the fused recurrent layers of oneDNN and cuDNN
    have a first derivative only; the second one of the fused weight norm is wrong.

    Parameters
    ----------
    module : torch.nn.Module
        Decides whether the recurrent kernels have to be switched off.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_PlainWeightNorm())
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            stack.enter_context(_switched_off(torch.backends.mkldnn))
            stack.enter_context(_switched_off(torch.backends.cudnn))
        yield


class _PlainWeightNorm(TorchFunctionMode):
    """Spell out w = g v/‖v‖: gradgradcheck fails for the fused one (torch 2.13)."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        v, g, dim = args
        return v * (g / torch.norm_except_dim(v, 2, dim))


@contextlib.contextmanager
def _switched_off(backend: Any) -> Iterator[None]:
    # Its own ``flags`` sets the other flags too, and warns of one without a GPU.
    before = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = before
