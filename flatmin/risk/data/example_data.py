"""What a risk asks of its examples, and examples that are held in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol, cast

from torch import Tensor

from flatmin._utils.trees import Inputs, map_inputs
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

    def part(self, indices: Tensor) -> ExampleData:
        """Return some examples as data of their own."""
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
    X : Tensor of shape (N, ...) or Tree
    y : Tensor of shape (N, ...)
        In the loss's form.
    weights : Tensor of shape (N,) or None
        N wᵢ / Σw.
    """

    def __init__(self, X: Inputs, y: Tensor, weights: Tensor | None) -> None:
        self.X = X
        self.y = y
        self.weights = weights
        self._n_shown = 0  # how many a module has been given

    def __len__(self) -> int:
        return len(self.X)

    def iterate(self, chunk_size: int) -> Iterator[Chunk]:
        """See :meth:`ExampleData.iterate`."""
        for chunk in iterate_chunks(self.X, self.y, self.weights, chunk_size):
            n_shown = cast(slice, chunk.rows).stop
            # Module and loss may write where the trials did not show it: once, copies.
            if self._n_shown < n_shown and len(chunk.X) < len(self):
                X = map_inputs(Tensor.clone, chunk.X)
                chunk = replace(chunk, X=X, y=chunk.y.clone())
            self._n_shown = max(self._n_shown, n_shown)
            yield chunk

    def select(self, indices: Tensor) -> Chunk:
        """See :meth:`ExampleData.select`; in the strides of X."""
        X = map_inputs(lambda leaf: _select(leaf, indices), self.X)
        weights = None if self.weights is None else self.weights[indices]
        return Chunk(X, self.y[indices], weights, slice(0, len(indices)))

    def part(self, indices: Tensor) -> ArrayData:
        """See :meth:`ExampleData.part`."""
        chosen = self.select(indices)
        return ArrayData(chosen.X, chosen.y, chosen.weights)

    def target_weights(self, loss: ExampleLoss, size: int) -> Tensor | None:
        """See :meth:`ExampleData.target_weights`."""
        return loss.target_weights(self.y)

    def arguments(self) -> tuple[Inputs, Tensor]:
        """See :meth:`ExampleData.arguments`."""
        return self.X, self.y


def _select(leaf: Tensor, indices: Tensor) -> Tensor:
    """Return rows in the strides that all have: images may lie channels-last."""
    if leaf.ndim == 4 and leaf.stride(1) == 1:
        return leaf.movedim(1, -1)[indices].movedim(-1, 1)
    return leaf[indices]
