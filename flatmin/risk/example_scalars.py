"""One number of each example, whose gradients are the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["ExampleScalars", "inner_products"]


@dataclass(frozen=True)
class ExampleScalars:
    """What is differentiated: ``scalar(model(X), *args)``, of n examples."""

    X: Tensor  # (n, ...)
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
