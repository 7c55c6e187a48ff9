"""What a risk asks of its examples, and examples that are held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from flatmin.risk.data.chunks import Chunk, iterate_chunks
from flatmin.risk.losses.example_loss import ExampleLoss

__all__ = ["ArrayData", "ExampleData"]


class ExampleData(Protocol):
    """N examples in a fixed order."""

    weights: Tensor | None  # (N,) N wᵢ / Σw

    def __len__(self) -> int:
        """Return N."""
        ...

    def iterate(self, chunk_size: int) -> Iterator[Chunk]:
        """Yield all examples in order, ``chunk_size`` at a time."""
        ...

    def select(self, indices: Tensor) -> Chunk:
        """Return some examples; one may come twice."""
        ...

    def target_weights(self, loss: ExampleLoss, size: int) -> Tensor | None:
        """Return what each example's targets count, shape (N,); None for alike.

        Targets that are not in memory are read once, ``size`` examples at a time.
        """
        ...

    def arguments(self) -> tuple[Any, Tensor | None]:
        """Return X and y for another risk of the same examples."""
        ...


class ArrayData:
    """Examples in memory, cut without a copy.

    Parameters
    ----------
    X : Tensor of shape (N, ...)
    y : Tensor of shape (N, ...)
        In the loss's form.
    weights : Tensor of shape (N,) or None
        N wᵢ / Σw.
    """

    def __init__(self, X: Tensor, y: Tensor, weights: Tensor | None) -> None:
        self.X = X
        self.y = y
        self.weights = weights

    def __len__(self) -> int:
        return len(self.X)

    def iterate(self, chunk_size: int) -> Iterator[Chunk]:
        """See :meth:`ExampleData.iterate`."""
        return iterate_chunks(self.X, self.y, self.weights, chunk_size)

    def select(self, indices: Tensor) -> Chunk:
        """See :meth:`ExampleData.select`; in the strides of X."""
        X = self.X
        if X.ndim == 4 and X.stride(1) == 1:
            X = X.movedim(1, -1)[indices].movedim(-1, 1)
        else:
            X = X[indices]
        weights = None if self.weights is None else self.weights[indices]
        return Chunk(X, self.y[indices], weights, slice(0, len(indices)))

    def target_weights(self, loss: ExampleLoss, size: int) -> Tensor | None:
        """See :meth:`ExampleData.target_weights`."""
        return loss.target_weights(self.y)

    def arguments(self) -> tuple[Tensor, Tensor]:
        """See :meth:`ExampleData.arguments`."""
        return self.X, self.y
