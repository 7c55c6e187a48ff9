"""Sums over rows that are products of two factors: Σ_t s_t x_tᵀ over t positions.

The row of a linear map or a convolution has i o numbers, its factors t (i + o). Where
there are few positions, as in the late layers of a network of convolutions, norms come
from the factors alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk.example_sums.moments import centred_moments, squared_sums

__all__ = ["moments_by_outputs", "norms_by_positions"]


def norms_by_positions(inputs: Tensor, slopes: Tensor) -> Tensor:
    """Return ‖Σ_t s_t x_tᵀ‖² = Σ_tu (s_t·s_u)(x_t·x_u).

    Terms can cancel. In float64 they leave the digits that rows in float32 have.

    Parameters
    ----------
    inputs : Tensor of shape (n, t, i)
    slopes : Tensor of shape (n, t, o)

    Returns
    -------
    Tensor of shape (n,)
        In float64.
    """
    inputs, slopes = inputs.double(), slopes.double()
    pairs = torch.bmm(inputs, inputs.mT).mul_(torch.bmm(slopes, slopes.mT))
    return pairs.sum((1, 2)).clamp_(min=0)


def moments_by_outputs(
    inputs: Tensor, slopes: Tensor, n_numbers: int
) -> tuple[Tensor, Tensor]:
    """Return mean and centred squares of the rows, some outputs of all rows at a time.

    Parameters
    ----------
    inputs : Tensor of shape (n, t, i)
    slopes : Tensor of shape (n, t, o)
    n_numbers : int
        Of rows that are held at a time, at least.

    Returns
    -------
    mean : Tensor of shape (o i,)
        In float64, as the next.
    centred_squares : Tensor of shape (o i,)
    """
    n, _, size = inputs.shape
    step = max(1, n_numbers // (n * size))
    means, squares = [], []
    for part in slopes.split(step, 2):
        rows = torch.bmm(part.mT, inputs).flatten(1)
        centre = rows.mean(0)
        rows -= centre
        # What is left beside the mean in float32 has the digits that the rows have.
        rest, centred = centred_moments(rows.sum(0).double(), squared_sums(rows), n)
        means.append(rest + centre)
        squares.append(centred)
    return torch.cat(means), torch.cat(squares)
