"""Mean loss, and mean and spread of the per-example gradients, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatmin.risk.ranks.words import over_ranks

__all__ = [
    "Moments",
    "centred_moments",
    "mean_and_squares",
    "merge_moments",
    "merged",
    "squared_row_norms",
    "squared_sums",
]

# Numbers in float64 at a time: on a CPU they stay within the caches, and no memory is
# asked for that the system must first clear. That took longer than the sums.
_AT_A_TIME = 1 << 16
_LEAST_SQUARE = 2.0**-100


class Moments(NamedTuple):
    """The mean of n values, and mean and spread of their gradients, in float64."""

    n: int
    value: Tensor  # (*chains)
    mean: Tensor  # (*chains, D) ḡ
    centred_squares: Tensor  # (*chains, D) Σᵢ (gᵢ - ḡ)²


def mean_and_squares(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return ḡ and Σᵢ (gᵢ - ḡ)² of gradients that are there in full.

    Parameters
    ----------
    rows : Tensor of shape (\\*chains, n, D)

    Returns
    -------
    mean : Tensor of shape (\\*chains, D)
        In float64, as the next.
    squares : Tensor of shape (\\*chains, D)
    """
    mean = rows.mean(-2, keepdim=True, dtype=torch.float64)
    return mean.squeeze(-2), squared_sums(rows - mean.to(rows.dtype))


def squared_sums(rows: Tensor) -> Tensor:
    """Return the sum of the squares of each coordinate, right at every scale.

    A square in float32 has no digits below 1e-38, where a gradient of 1e-20 has all:
    what comes near is summed in float64.

    Parameters
    ----------
    rows : Tensor of shape (\\*chains, n, D)

    Returns
    -------
    Tensor of shape (\\*chains, D)
        In float64.
    """
    if rows.device.type != "cpu":  # in one pass, without a copy, and without waiting
        norms: Tensor = torch.linalg.vector_norm(rows, dim=-2, dtype=torch.float64)
        return norms.square_()
    squares = rows.square().sum(-2).double()
    if rows.dtype == torch.float64:
        return squares
    # Each of the n may miss a number of 2⁻¹²⁶.
    held = (squares >= rows.shape[-2] * _LEAST_SQUARE) & (squares < torch.inf)
    if not bool(held.all()):
        doubtful = ~held.flatten(0, -2).all(0) if held.ndim > 1 else ~held
        some = rows[..., doubtful].double()
        squares[..., doubtful] = some.square_().sum(-2)
    return squares


def centred_moments(sums: Tensor, squares: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the mean and the centred squares of n rows from sums in float64.

    The difference of two large numbers loses digits: where the mean is a thousand times
    the spread, six of float64's sixteen. Callers check for this, or pass sums of rows
    less a centre.

    Parameters
    ----------
    sums : Tensor of shape (D,)
        Σᵢ gᵢ. Overwritten with the mean.
    squares : Tensor of shape (D,)
        Σᵢ gᵢ². Overwritten with the centred squares.
    n : int

    Returns
    -------
    mean : Tensor of shape (D,)
    centred_squares : Tensor of shape (D,)
    """
    mean = sums.div_(n)
    return mean, squares.addcmul_(mean, mean, value=-n).clamp_(min=0)


def squared_row_norms(rows: Tensor) -> Tensor:
    """Return the squared norm of each row, in float64 throughout.

    Parameters
    ----------
    rows : Tensor of shape (\\*chains, n, p)

    Returns
    -------
    Tensor of shape (\\*chains, n)
        In float64.
    """
    if rows.ndim > 2:
        return squared_row_norms(rows.flatten(0, -2)).view(rows.shape[:-1])
    n, p = rows.shape
    norms = torch.empty(n, dtype=torch.float64, device=rows.device)
    if rows.device.type != "cpu" or rows.dtype == torch.float64:
        torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64, out=norms)
        return norms.square_()
    step = max(1, _AT_A_TIME // max(p, 1))
    buffer = torch.empty(min(step, n), p, dtype=torch.float64)
    for block, out in zip(rows.split(step), norms.split(step), strict=True):
        held = buffer[: len(block)].copy_(block)
        torch.linalg.vector_norm(held, dim=1, out=out)
    return norms.square_()


def merge_moments(parts: Iterator[Moments]) -> Moments:
    """Return the moments of all groups together.

    Two groups of sizes a and b whose means differ by δ together have the squares of
    both plus δ² ab/(a + b) [1]_. Unlike Σ gᵢ² - N g₀² this cancels nowhere, and it
    costs no second sweep.

    Parameters
    ----------
    parts : iterator of Moments
        Overwritten.

    Returns
    -------
    Moments

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the
       sample variance", 1983, :doi:`10.1080/00031305.1983.10483115`.
    """
    return reduce(_merge, parts)


def _merge(one: Moments, other: Moments) -> Moments:
    """Merge two groups into the numbers of the first, whose D are many in a network."""
    n = one.n + other.n
    value = one.value + (other.value - one.value) * (other.n / n)
    delta = other.mean.sub_(one.mean)
    one.centred_squares.add_(other.centred_squares)
    one.centred_squares.addcmul_(delta, delta, value=one.n * other.n / n)
    one.mean.add_(delta, alpha=other.n / n)
    return one._replace(n=n, value=value)


def _share(risk: Any, own: Moments, _theta: Tensor) -> tuple[Tensor, Tensor]:
    n = risk._shard.n_own
    if not n:  # an example stood in
        return torch.zeros_like(own.value), torch.zeros_like(own.mean)
    share = n / risk.n_examples
    return own.value * share, own.mean * share


def _merged(risk: Any, own: Moments, sums: tuple[Tensor, ...]) -> Moments:
    (value, mean), n = sums, risk._shard.n_own
    squares = torch.zeros_like(mean)
    if n:
        squares = own.centred_squares + n * (own.mean - mean).square()
    return Moments(risk.n_examples, value, mean, *risk._ranks.sum(squares))


# The method returns the moments of the examples that are here. As between two chunks:
# the squares of all ranks, and those of their means about the mean of all.
merged = over_ranks(_share, _merged)
