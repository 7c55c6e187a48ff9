"""Kernel: the variance of each coordinate of the per-example gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["centred_square_sum"]


def centred_square_sum(parts: Iterator[Tensor]) -> Tensor:
    """Return Σᵢ (gᵢ - g₀)² by coordinate without knowing g₀ beforehand.

    Each part is centred at its own mean, and two groups of sizes a and b whose means
    differ by δ together have the squares of both plus δ² ab/(a + b) [1]_. Unlike
    Σ gᵢ² - N g₀² this cancels nowhere, and it costs no second sweep.

    Parameters
    ----------
    parts : iterator of Tensor of shape (\\*batch, n, D)
        The gradients, in any cut.

    Returns
    -------
    Tensor of shape (\\*batch, D)
        In float64.

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the
       sample variance", 1983, :doi:`10.1080/00031305.1983.10483115`.
    """
    first = next(parts)
    total, center = _within(first)
    n = first.shape[-2]
    for rows in parts:
        n_new = rows.shape[-2]
        within, mean = _within(rows)
        delta = mean - center
        total = total + within + delta.square() * (n * n_new / (n + n_new))
        center = center + delta * (n_new / (n + n_new))
        n += n_new
    return total


def _within(rows: Tensor) -> tuple[Tensor, Tensor]:
    mean = rows.mean(-2, keepdim=True)
    squares = (rows - mean).square().sum(-2, dtype=torch.float64)
    return squares, mean.squeeze(-2).double()
