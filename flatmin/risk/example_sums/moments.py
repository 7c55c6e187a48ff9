"""Mean loss, and mean and spread of the per-example gradients, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Moments", "mean_and_squares", "merge_moments"]


class Moments(NamedTuple):
    """The mean of n values, and mean and spread of their gradients, in float64."""

    n: int
    value: Tensor  # ()
    mean: Tensor  # (D,) ḡ
    centred_squares: Tensor  # (D,) Σᵢ (gᵢ - ḡ)²


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
    squares = (rows - mean.to(rows.dtype)).square().sum(-2, dtype=torch.float64)
    return mean.squeeze(-2), squares


def merge_moments(parts: Iterator[Moments]) -> Moments:
    """Return the moments of all groups together.

    Two groups of sizes a and b whose means differ by δ together have the squares of
    both plus δ² ab/(a + b) [1]_. Unlike Σ gᵢ² - N g₀² this cancels nowhere, and it
    costs no second sweep.

    Parameters
    ----------
    parts : iterator of Moments

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
    n = one.n + other.n
    delta = other.mean - one.mean
    between = delta.square() * (one.n * other.n / n)
    return Moments(
        n,
        one.value + (other.value - one.value) * (other.n / n),
        one.mean + delta * (other.n / n),
        one.centred_squares + other.centred_squares + between,
    )
