"""Kernels: outputs, losses and gradients of some examples at C values of θ at once.

Only the network runs under ``vmap``. The loss treats each example by itself, so that C
chains of n examples are C n examples to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flatmin._utils.trees import leaves_of, with_leaves
from flatmin.risk.autodiff.isolation import isolated, vectorize
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.per_example import vectorised_rows
from flatmin.risk.example_sums.scalars import ExampleScalars
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel

__all__ = [
    "ChainChunk",
    "chain_losses",
    "chain_losses_and_gradient",
    "chain_losses_and_pullback",
    "chain_outputs",
    "chain_rows",
    "share",
]


@dataclass(frozen=True)
class ChainChunk:
    """Some examples for each of C chains."""

    examples: Chunk  # y and weights of shape (C n, ...); X too, or (n, ...) if shared
    n_chains: int
    is_shared: bool  # whether all chains have the same X

    def by_chain(self, values: Tensor) -> Tensor:
        """Return what belongs to each example, (C n, ...), in shape (C, n, ...)."""
        return values.view(self.n_chains, -1, *values.shape[1:])


def share(chunk: Chunk, n_chains: int) -> ChainChunk:
    """Give all chains the same examples.

    Parameters
    ----------
    chunk : Chunk
    n_chains : int
        C.

    Returns
    -------
    ChainChunk
    """
    y, weights = chunk.y, chunk.weights
    y = y.expand(n_chains, *y.shape).flatten(0, 1)
    if weights is not None:
        weights = weights.expand(n_chains, -1).flatten()
    return ChainChunk(replace(chunk, y=y, weights=weights), n_chains, is_shared=True)


def chain_outputs(model: FlatModel, thetas: Tensor, chunk: ChainChunk) -> Tensor:
    """Return the outputs of each chain, with their graph where gradients are on.

    Parameters
    ----------
    model : FlatModel
    thetas : Tensor of shape (C, D)
    chunk : ChainChunk

    Returns
    -------
    Tensor of shape (C n, \\*output_shape)
    """
    X = chunk.examples.X
    own = _own_leaves(chunk)

    def single(theta: Tensor, *leaves: Tensor) -> Tensor:
        return model.functional(theta, with_leaves(X, leaves) if own else X)

    outputs: Tensor = isolated(lambda: vectorize(single)(thetas, *own))
    return outputs.flatten(0, 1)


def chain_losses(
    model: FlatModel, loss: ExampleLoss, thetas: Tensor, chunk: ChainChunk
) -> Tensor:
    """Return ℓ̃ᵢ of each chain, with their graph where gradients are on.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    thetas : Tensor of shape (C, D)
    chunk : ChainChunk

    Returns
    -------
    Tensor of shape (C n,)
    """
    outputs = chain_outputs(model, thetas, chunk)
    return chunk.examples.weigh(loss.per_example(outputs, chunk.examples.y))


@torch.enable_grad()
def chain_losses_and_gradient(
    model: FlatModel,
    loss: ExampleLoss,
    thetas: Tensor,
    chunk: ChainChunk,
    *,
    cotangents: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return ℓ̃ᵢ and Σ cᵢ ∇ℓ̃ᵢ of each chain by one backward pass.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    thetas : Tensor of shape (C, D)
    chunk : ChainChunk
    cotangents : Tensor of shape (C, n)
        c.

    Returns
    -------
    losses : Tensor of shape (C, n)
        Without a graph.
    gradients : Tensor of shape (C, D)
    """
    thetas = thetas.detach().requires_grad_()
    losses = chain_losses(model, loss, thetas, chunk)
    (gradients,) = torch.autograd.grad(losses, thetas, cotangents.flatten())
    return chunk.by_chain(losses.detach()), gradients


@torch.enable_grad()
def chain_losses_and_pullback(
    model: FlatModel,
    loss: ExampleLoss,
    thetas: Tensor,
    chunk: ChainChunk,
    *,
    cotangents: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return ℓ̃ᵢ and Σ Jᵢᵀuᵢ of each chain, uᵢ from the outputs and slopes.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    thetas : Tensor of shape (C, D)
    chunk : ChainChunk
    cotangents : callable
        (outputs, ∂ℓ̃ᵢ/∂fᵢ) to u, each of shape (C n, \\*output_shape).

    Returns
    -------
    losses : Tensor of shape (C, n)
        Without a graph.
    gradients : Tensor of shape (C, D)
    """
    thetas = thetas.detach().requires_grad_()
    outputs = chain_outputs(model, thetas, chunk)
    leaf = outputs.detach().requires_grad_()
    losses = chunk.examples.weigh(loss.per_example(leaf, chunk.examples.y))
    (slopes,) = torch.autograd.grad(losses.sum(), leaf)
    u = cotangents(leaf.detach(), slopes)
    (gradients,) = torch.autograd.grad(outputs, thetas, u)
    return chunk.by_chain(losses.detach()), gradients


def chain_rows(
    model: FlatModel,
    thetas: Tensor,
    chunk: ChainChunk,
    *,
    scalar: Callable[..., Tensor],
    args: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Return a scalar of each example's output, and its ∇, in each chain.

    Parameters
    ----------
    model : FlatModel
    thetas : Tensor of shape (C, D)
    chunk : ChainChunk
    scalar : callable
        (outputs, \\*args) to one number of each example.
    args : tuple of Tensor of shape (C n, ...)
        What else belongs to each example.

    Returns
    -------
    values : Tensor of shape (C, n)
    rows : Tensor of shape (C, n, D)
    """
    X = chunk.examples.X
    own = _own_leaves(chunk)
    args = tuple(chunk.by_chain(argument) for argument in args)

    def single(theta: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        inputs = with_leaves(X, rest[: len(own)]) if own else X
        examples = ExampleScalars(inputs, rest[len(own) :], scalar)
        return vectorised_rows(model, theta, examples)

    return isolated(lambda: vectorize(single)(thetas, *own, *args))


def _own_leaves(chunk: ChainChunk) -> tuple[Tensor, ...]:
    """Return the leaves of X, (C, n, ...) each, where the chains do not share them."""
    if chunk.is_shared:
        return ()
    return tuple(chunk.by_chain(leaf) for leaf in leaves_of(chunk.examples.X))
