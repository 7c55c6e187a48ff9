"""One number of each example, its loss or another, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin._utils.trees import Inputs
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel

__all__ = [
    "ExampleScalars",
    "evaluate_losses",
    "example_losses",
    "inner_products",
    "losses_and_gradient",
    "losses_and_pullback",
]


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


@torch.enable_grad()
def losses_and_pullback(
    model: FlatModel,
    loss: ExampleLoss,
    chunk: Chunk,
    cotangents: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return ℓ̃ᵢ and Σ Jᵢᵀuᵢ by one backward pass, uᵢ from the outputs and slopes.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    loss : ExampleLoss
    chunk : Chunk
    cotangents : callable
        (outputs, ∂ℓ̃ᵢ/∂fᵢ) to u, each of shape (n, \\*output_shape).

    Returns
    -------
    losses : Tensor of shape (n,)
        Without a graph.
    gradient : Tensor of shape (D,)
    """
    outputs = model(chunk.X)
    leaf = outputs.detach().requires_grad_()
    losses = chunk.weigh(loss.per_example(leaf, chunk.y))
    (slopes,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), model.gradient(outputs, cotangents(leaf.detach(), slopes))


@dataclass(frozen=True)
class ExampleScalars:
    """What is differentiated: ``scalar(model(X), *args)``, of n examples."""

    X: Inputs  # (n, ...)
    args: tuple[Tensor, ...]  # (n, ...) each; what else belongs to an example
    scalar: Callable[..., Tensor]  # (outputs, *args) to (n,)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, part: slice | Tensor | list[int]) -> ExampleScalars:
        """Return those of some of the examples."""
        args = tuple(argument[part] for argument in self.args)
        return ExampleScalars(self.X[part], args, self.scalar)

    def of(self, outputs: Tensor) -> Tensor:
        """Return the scalars, shape (n,), of the outputs, shape (n, ...)."""
        return self.scalar(outputs, *self.args)


def inner_products(outputs: Tensor, others: Tensor) -> Tensor:
    """Return fᵢᵀuᵢ of each example.

    Parameters
    ----------
    outputs : Tensor of shape (n, ...)
    others : Tensor of shape (n, ...)
        In the same shape.

    Returns
    -------
    Tensor of shape (n,)
    """
    return (outputs * others).reshape(len(outputs), -1).sum(1)
