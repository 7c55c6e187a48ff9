"""A published model, its data and loss, and what a reference needs of it.

That is written in plain PyTorch: which of the module's returns are its outputs, and ℓ̃ᵢ
of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["N", "Published", "classes", "labels", "outputs_of", "squares", "words"]

N = 6  # examples of each


@dataclass
class Published:
    """A model, its data, and what is to be known of it."""

    module: nn.Module
    X: Any
    y: Tensor | None
    loss: Any  # as flatmin takes it
    losses: Callable[..., Tensor]  # outputs, y to ℓ̃ᵢ (N,); of a ModuleLoss, its f
    outputs: Callable[[Any], Tensor] = lambda returned: returned
    options: dict[str, Any] = field(default_factory=dict)
    mode: str = "eval"
    own_loss: Callable[[nn.Module], Tensor] | None = None  # what the model says L is
    by_differences: bool = False  # PyTorch's second derivative is missing or wrong


def outputs_of(published: Published, module: nn.Module) -> Tensor:
    """Return a module's outputs, called as its package calls it."""
    X = published.X
    if isinstance(X, Mapping):
        returned = module(**{name: _double(part) for name, part in X.items()})
    else:
        parts = X if isinstance(X, tuple) else (X,)
        returned = module(*map(_double, parts))
    return published.outputs(returned)


def _double(part: Tensor) -> Tensor:
    return part.double() if part.is_floating_point() else part


def labels() -> Tensor:
    """Return one of three classes for each example."""
    return torch.randint(3, (N,))


# Losses in plain PyTorch: ℓ̃ᵢ whose mean is L.


def classes(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, the mean over an example's positions."""
    losses = F.cross_entropy(outputs, y, reduction="none")
    return losses.reshape(len(y), -1).mean(1)


def words(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy over the positions of all examples that count."""
    losses = F.cross_entropy(outputs, y, reduction="none").sum(1)
    return losses * len(y) / (y != -100).sum()


def squares(outputs: Tensor, y: Tensor) -> Tensor:
    """Squared error, the mean over an example's numbers."""
    return (outputs - y).square().reshape(len(y), -1).mean(1)
