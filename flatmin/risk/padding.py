"""Whether an example is the same however long its batch is padded."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch

from flatmin._utils.trees import leaves_of
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.trial_points import bound, trial_points, trial_scalars
from flatmin.risk.hidden import outputs_off
from flatmin.risk.independence import off_in_float64
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.trials import difference, tolerance

__all__ = ["check_padding"]


def check_padding(
    model: FlatModel, loss: ExampleLoss, few: Chunk, alone: Iterable[Chunk]
) -> None:
    """Check that an example has the same loss however long its batch is padded.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    few : Chunk
        Examples that were read together.
    alone : iterable of Chunk
        Each of them, read by itself.

    Raises
    ------
    ValueError
        If the loss of one is another.
    """
    shapes = [leaf.shape[1:] for leaf in leaves_of(few.X)]
    padded = {
        i: one
        for i, one in enumerate(alone)
        if [leaf.shape[1:] for leaf in leaves_of(one.X)] != shapes
    }
    if not padded:
        return
    limit = tolerance(model.precision, 0)
    for theta in trial_points(model, trial_scalars(model, loss, few)):
        with bound(model, theta):
            for row, one in padded.items():
                off_by = partial(_padding_off, few=few, row=row)
                off = off_by(model, loss, one)
                if (
                    off > limit
                    and off_in_float64(model, loss, one, off_by) > limit / 10
                ):
                    long, short = shapes[0], leaves_of(one.X)[0].shape[1:]
                    raise ValueError(
                        _PADS.format(short=tuple(short), long=tuple(long), off=off)
                    )


def _padding_off(
    model: FlatModel, loss: ExampleLoss, one: Chunk, *, few: Chunk, row: int
) -> float:
    """Return how far outputs, or losses, of an example are from those among others."""
    few = few.double() if model.dtype == torch.float64 else few
    together, y = model.evaluate(few.X)[row : row + 1], few.y[row : row + 1]
    alone = model.evaluate(one.X)
    if alone.shape == together.shape:
        return outputs_off(alone, together, loss, y)
    losses = loss.per_example(alone, one.y)
    return difference(losses, loss.per_example(together, y))


_PADS = (
    "The loss of one example must not depend on what it is read with. Got a collate_fn "
    "that pads: an example of shape {short} becomes one of {long} among others, and "
    "what the module makes of it changes by {off:.1e}, relative to its size. Return "
    "the lengths or a mask beside x, as a mapping or a tuple, and let the module leave "
    "the padding out (attention masks, pack_padded_sequence with "
    "enforce_sorted=False); or pad all examples to one length, if padding is a part of "
    "the data."
)
