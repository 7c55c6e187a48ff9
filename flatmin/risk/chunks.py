"""How many examples are worked on at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Chunk", "choose_chunk_size", "iterate_chunks"]

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
        Between 1 and N.

    Examples
    --------
    >>> choose_chunk_size(60_000, 10_000), choose_chunk_size(1200, 10_000)
    (6710, 1200)
    """
    return max(1, min(n_examples, _BUDGET // max(1, numbers_per_example)))


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
    for start in range(0, len(X), chunk_size):
        rows = slice(start, min(start + chunk_size, len(X)))
        part = None if weights is None else weights[rows]
        yield Chunk(X[rows], y[rows], part, rows)
