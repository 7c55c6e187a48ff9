"""In which precision a module computes, and what it computes without its casts."""

from __future__ import annotations

import torch

from flatmin.risk.autodiff.casts import LowestDtype
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import losses_and_gradient
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel

__all__ = ["leave_out_casts"]


def leave_out_casts(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> bool:
    """Make a model in float64 compute in float64 throughout, where that can be.

    Parameters
    ----------
    model : FlatModel
        In float64; learns in which precision it computes.
    loss : ExampleLoss
    chunk : Chunk
        A few examples.

    Returns
    -------
    bool
        Whether there is a gradient in float64 at all.
    """
    if not _differentiates(model, loss, chunk):
        return False
    if model.precision != torch.float64:
        model.in_float64 = True
        model.in_float64 = _differentiates(model, loss, chunk)
    return True


def _differentiates(model: FlatModel, loss: ExampleLoss, chunk: Chunk) -> bool:
    """Say whether there is a gradient, and note in which precision."""
    lowest = LowestDtype(model.params)
    ones = model.params[0].new_ones(len(chunk.X))
    try:
        with lowest:
            losses_and_gradient(model, loss, chunk, ones)
    except RuntimeError:
        return False
    model.lowest_dtype = lowest.found
    return True
