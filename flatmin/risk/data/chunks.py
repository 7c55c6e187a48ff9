"""How many examples are worked on at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin._utils.columns import as_column
from flatmin._utils.memory import available_memory, in_gigabytes
from flatmin._utils.trees import Inputs, leaves_of, map_inputs

__all__ = [
    "Chunk",
    "check_whole_batch",
    "choose_chunk_size",
    "find_chunk_size",
    "iterate_chunks",
    "pad_chunk",
]

# Numbers held at a time for activations or for rows of per-example gradients:
# 256 MiB in float32. It depends on shapes alone, so the same data give the same
# chunks, and so the same sums to the last bit, on every run.
_BUDGET = 1 << 26


@dataclass(frozen=True)
class Chunk:
    """Some examples, cut out of the data without a copy."""

    X: Inputs  # (n, ...); several arrays are one tree
    y: Tensor  # (n, ...)
    weights: Tensor | None  # (n,) N wᵢ / Σw; None when all are one
    rows: slice | Tensor  # where the chunk lies among the N examples

    @property
    def targets_and_weights(self) -> tuple[Tensor, ...]:
        """What else belongs to each example: y, and the weight where there is one."""
        return (self.y,) if self.weights is None else (self.y, self.weights)

    def weigh(self, values: Tensor) -> Tensor:
        """Multiply what belongs to each example, shape (n, ...), by its weight."""
        if self.weights is None:
            return values
        return values * as_column(self.weights, values)

    def first(self, n: int) -> Chunk:
        """Return the first n examples, or all where there are fewer."""
        n = min(n, len(self.X))
        weights = None if self.weights is None else self.weights[:n]
        whole = self.rows
        rows = (
            whole[:n]
            if isinstance(whole, Tensor)
            else slice(whole.start, whole.start + n)
        )
        return Chunk(self.X[:n], self.y[:n], weights, rows)

    def double(self) -> Chunk:
        """Return the same examples in float64; integers stay integers."""
        weights = None if self.weights is None else self.weights.double()
        return Chunk(map_inputs(_double, self.X), _double(self.y), weights, self.rows)


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


def find_chunk_size(
    asked: int | None,
    n_examples: int,
    numbers_per_example: int,
    theta: Tensor,
    n_ranks: int,
    *,
    whole: bool,
) -> int:
    """Return how many examples are worked on at a time; arguments as below.

    Parameters
    ----------
    asked : int or None
    n_examples : int
    numbers_per_example : int
    theta : Tensor
    n_ranks : int
    whole : bool
        Whether all examples must be worked on at once.

    Returns
    -------
    int
    """
    if whole:
        check_whole_batch(asked, n_examples, numbers_per_example, theta, n_ranks)
        return n_examples
    return min(asked or choose_chunk_size(n_examples, numbers_per_example), n_examples)


def check_whole_batch(
    chunk_size: int | None,
    n_examples: int,
    numbers_per_example: int,
    theta: Tensor,
    n_ranks: int,
) -> None:
    """Raise unless all examples can be worked on at once.

    Parameters
    ----------
    chunk_size : int or None
        What was asked for.
    n_examples : int
        N.
    numbers_per_example : int
        Of intermediate values that one example needs.
    theta : Tensor
        Of the dtype, and on the device, of the work.
    n_ranks : int
        Processes that share the examples.

    Raises
    ------
    ValueError
        If fewer were asked for, memory does not reach, or others have the rest.
    """
    if n_ranks > 1:
        raise ValueError(
            "With batch_norm='batch' each loss depends on the statistics of all "
            f"examples. Got distributed=True, where {n_ranks} ranks share them; use "
            "batch_norm='frozen', or one process."
        )
    if chunk_size is not None and chunk_size < n_examples:
        raise ValueError(
            "With batch_norm='batch' each loss depends on the statistics of all "
            f"examples, so that they are one chunk. Got chunk_size={chunk_size} for "
            f"{n_examples} examples; leave it at None, or use batch_norm='frozen'."
        )
    needed = n_examples * numbers_per_example * theta.element_size()
    free = available_memory()
    if theta.device.type == "cuda":
        where = theta.device
        kept = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
        free = torch.cuda.mem_get_info(where)[0] + kept
    if free is not None and needed > free:
        raise ValueError(
            "With batch_norm='batch' all examples are one chunk. The activations of "
            f"{n_examples} take {in_gigabytes(needed)}, and {in_gigabytes(free)} of "
            "memory are free. Use fewer examples, or batch_norm='frozen'."
        )


def iterate_chunks(
    X: Inputs, y: Tensor, weights: Tensor | None, chunk_size: int
) -> Iterator[Chunk]:
    """Yield the data in order, ``chunk_size`` examples at a time.

    Parameters
    ----------
    X : Tensor of shape (N, ...) or Tree
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
        yield Chunk(map_inputs(Tensor.detach, X), y, weights, slice(0, len(X)))
        return
    for start in range(0, len(X), chunk_size):
        rows = slice(start, min(start + chunk_size, len(X)))
        part = None if weights is None else weights[rows]
        yield Chunk(X[rows], y[rows], part, rows)


def pad_chunk(chunk: Chunk, size: int) -> tuple[Tensor, ...]:
    """Fill a chunk up with copies of its first example, of weight 0.

    Parameters
    ----------
    chunk : Chunk
    size : int
        At least the chunk's.

    Returns
    -------
    tuple of Tensor of shape (size, ...)
        The leaves of X, with the strides of a chunk that needs no filling; then y, and
        the weights.
    """
    n, leaves, weights = len(chunk.X), leaves_of(chunk.X), chunk.weights
    if weights is None:
        floating = [leaf for leaf in leaves if leaf.is_floating_point()]
        dtype = floating[0].dtype if floating else torch.float32
        weights = torch.ones(n, dtype=dtype, device=chunk.y.device)
    if n == size:
        return *leaves, chunk.y, weights
    padded = (_pad(leaf, size) for leaf in leaves)
    y = torch.cat([chunk.y, chunk.y[:1].expand(size - n, *chunk.y.shape[1:])])
    return *padded, y, torch.cat([weights, weights.new_zeros(size - n)])


def _pad(leaf: Tensor, size: int) -> Tensor:
    # In memory of its own: the examples may share theirs, as sliding windows do.
    n, shape = len(leaf), (size, *leaf.shape[1:])
    padded = leaf.new_empty(shape)
    if leaf.ndim == 4 and leaf.stride(1) == 1:
        _, c, h, w = shape
        padded = padded.as_strided(shape, (c * h * w, 1, w * c, c))
    padded[:n], padded[n:] = leaf, leaf[:1]
    return padded
