"""How many examples are worked on at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Chunk", "choose_chunk_size", "iterate_chunks", "pad_chunk"]

# Numbers held at a time for activations or for rows of per-example gradients:
# 256 MiB in float32. It depends on shapes alone, so the same data give the same
# chunks, and so the same sums to the last bit, on every run.
_BUDGET = 1 << 26


@dataclass(frozen=True)
class Chunk:
    """Some examples, cut out of the data without a copy."""

    X: Tensor  # (n, ...)
    y: Tensor  # (n, ...)
    weights: Tensor | None  # (n,) N wᵢ / Σw; None when all are one
    rows: slice  # where the chunk lies among the N examples

    @property
    def targets_and_weights(self) -> tuple[Tensor, ...]:
        """What else belongs to each example: y, and the weight where there is one."""
        return (self.y,) if self.weights is None else (self.y, self.weights)

    def weigh(self, values: Tensor) -> Tensor:
        """Multiply what belongs to each example, shape (n, ...), by its weight."""
        if self.weights is None:
            return values
        return values * self.weights.view(-1, *(1 for _ in values.shape[1:]))

    def double(self) -> Chunk:
        """Return the same examples in float64; integers stay integers."""
        weights = None if self.weights is None else self.weights.double()
        return Chunk(_double(self.X), _double(self.y), weights, self.rows)


def _double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def choose_chunk_size(n_examples: int, numbers_per_example: int) -> int:
    """Return the number of examples that keeps a chunk within the budget.

    Parameters
    ----------
    n_examples : int
        N.
    numbers_per_example : int
        Of intermediate values that one example needs.

    Returns
    -------
    int
        Between 1 and N, such that all chunks are about as large.

    Examples
    --------
    >>> choose_chunk_size(60_000, 10_000), choose_chunk_size(1200, 10_000)
    (6667, 1200)
    """
    largest = max(1, _BUDGET // max(1, numbers_per_example))
    return math.ceil(n_examples / math.ceil(n_examples / largest))


def iterate_chunks(
    X: Tensor, y: Tensor, weights: Tensor | None, chunk_size: int
) -> Iterator[Chunk]:
    """Yield the data in order, ``chunk_size`` examples at a time.

    Parameters
    ----------
    X : Tensor of shape (N, ...)
    y : Tensor of shape (N, ...)
    weights : Tensor of shape (N,) or None
    chunk_size : int
        The last chunk may be smaller.

    Yields
    ------
    Chunk
    """
    if chunk_size >= len(X):  # cutting takes time on a tiny problem
        # A tensor of its own: forward may call requires_grad_ on it.
        yield Chunk(X.detach(), y, weights, slice(0, len(X)))
        return
    for start in range(0, len(X), chunk_size):
        rows = slice(start, min(start + chunk_size, len(X)))
        part = None if weights is None else weights[rows]
        yield Chunk(X[rows], y[rows], part, rows)


def pad_chunk(chunk: Chunk, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fill a chunk up with copies of its first example, of weight 0.

    Parameters
    ----------
    chunk : Chunk
    size : int
        At least the chunk's.

    Returns
    -------
    X : Tensor of shape (size, ...)
        With the strides of a chunk that needs no filling.
    y : Tensor of shape (size, ...)
    weights : Tensor of shape (size,)
    """
    n = len(chunk.X)
    weights = chunk.weights
    if weights is None:
        dtype = chunk.X.dtype if chunk.X.is_floating_point() else torch.float32
        weights = torch.ones(n, dtype=dtype, device=chunk.X.device)
    if n == size:
        return chunk.X, chunk.y, weights
    # In memory of its own: the examples may share theirs, as sliding windows do.
    shape, strides = (size, *chunk.X.shape[1:]), None
    if chunk.X.ndim == 4 and chunk.X.stride(1) == 1:
        _, c, h, w = shape
        strides = (c * h * w, 1, w * c, c)
    X = chunk.X.new_empty(shape)
    if strides is not None:
        X = X.as_strided(shape, strides)
    X[:n], X[n:] = chunk.X, chunk.X[:1]
    y = torch.cat([chunk.y, chunk.y[:1].expand(size - n, *chunk.y.shape[1:])])
    return X, y, torch.cat([weights, weights.new_zeros(size - n)])
