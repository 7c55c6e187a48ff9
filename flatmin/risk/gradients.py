"""Kernels of first order: losses and weighted sums of gradients of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk.chunks import Chunk
from flatmin.risk.losses import ExampleLoss
from flatmin.risk.model import FlatModel

__all__ = ["evaluate_losses", "example_losses", "losses_and_gradient"]


def example_losses(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> Tensor:
    """Return ℓ̃ᵢ = (N wᵢ / Σw) ℓᵢ at the bound θ.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    chunk : Chunk

    Returns
    -------
    Tensor of shape (n,)
    """
    return chunk.weigh(loss.per_example(model(chunk.X), chunk.y))


@torch.no_grad()
def evaluate_losses(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> Tensor:
    """Return ℓ̃ᵢ at the bound θ, without a graph.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    chunk : Chunk

    Returns
    -------
    Tensor of shape (n,)
    """
    return chunk.weigh(loss.per_example(model.evaluate(chunk.X), chunk.y))


@torch.enable_grad()
def losses_and_gradient(
    model: FlatModel, loss: ExampleLoss, chunk: Chunk, cotangents: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ℓ̃ᵢ and Σ cᵢ ∇ℓ̃ᵢ by one backward pass.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    loss : ExampleLoss
    chunk : Chunk
    cotangents : Tensor of shape (n,)
        c.

    Returns
    -------
    losses : Tensor of shape (n,)
        Without a graph.
    gradient : Tensor of shape (D,)
    """
    losses = example_losses(model, loss, chunk)
    return losses.detach(), model.gradient(losses, cotangents)
