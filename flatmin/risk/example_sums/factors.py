"""Sums over rows that are products of two factors: Σ_t s_t x_tᵀ over t positions.

The row of a linear map or a convolution has i o numbers, its factors t (i + o). Where
there are few positions, as in the late layers of a network of convolutions, norms come
from the factors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flatmin.risk.example_sums.moments import centred_moments, squared_sums

__all__ = ["Factors", "moments_by_outputs", "norms_by_positions"]


class Factors(NamedTuple):
    """What the rows of one use are made of: Σ_t s_t x_tᵀ.

    The s_t of an embedding are unit vectors, as long as the vocabulary, and given by
    their places.
    """

    inputs: Tensor  # (n, t, i)
    slopes: Tensor  # (n, t, o), or places of shape (n, t)


def norms_by_positions(uses: Sequence[Factors]) -> Tensor:
    """Return ‖Σ_t s_t x_tᵀ‖² = Σ_tu (s_t·s_u)(x_t·x_u), t and u over all uses.

    Terms can cancel. In float64 they leave the digits that rows in float32 have.

    Parameters
    ----------
    uses : sequence of Factors
        Of one parameter, on the same n examples.

    Returns
    -------
    Tensor of shape (n,)
        In float64.
    """
    uses = [use._replace(inputs=use.inputs.double()) for use in uses]
    total = torch.zeros(
        len(uses[0].inputs), dtype=torch.float64, device=uses[0][0].device
    )
    for i, one in enumerate(uses):
        for other in uses[: i + 1]:
            pairs = torch.bmm(one.inputs, other.inputs.mT)
            pairs *= _products(one.slopes, other.slopes)
            total += pairs.sum((1, 2)) * (1 if one is other else 2)
    return total.clamp_(min=0)


def _products(one: Tensor, other: Tensor) -> Tensor:
    """Return s_t·s_u, n t u, where each may be given by places."""
    if one.ndim == 2 and other.ndim == 2:
        return one.unsqueeze(2) == other.unsqueeze(1)
    if one.ndim == 2:
        return _products(other, one).mT
    if other.ndim == 2:  # the entries of s_t at the places
        places = other.unsqueeze(1).expand(-1, one.shape[1], -1)
        return one.gather(2, places).double()
    doubled = one.double()
    return torch.bmm(doubled, doubled.mT if one is other else other.double().mT)


def moments_by_outputs(factors: Factors, n_numbers: int) -> tuple[Tensor, Tensor]:
    """Return mean and centred squares of the rows, some outputs of all rows at a time.

    Parameters
    ----------
    factors : Factors
        Whose slopes are not places.
    n_numbers : int
        Of rows that are held at a time, at least.

    Returns
    -------
    mean : Tensor of shape (o i,)
        In float64, as the next.
    centred_squares : Tensor of shape (o i,)
    """
    inputs, slopes = factors
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
