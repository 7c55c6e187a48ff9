"""On what, and at which parameters, a way to a quantity is tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import ExampleScalars, inner_products
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel
from flatmin.risk.network.prepared_module import beside
from flatmin.risk.trials import random_like

__all__ = ["bound", "trial_points", "trial_scalars"]


def trial_scalars(model: FlatModel, loss: ExampleLoss, few: Chunk) -> ExampleScalars:
    """Return losses and products of outputs with random numbers, to try rows on.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
    few : Chunk

    Returns
    -------
    ExampleScalars
    """
    outputs = model.evaluate(few.X)

    def scalar(outputs: Tensor, y: Tensor, u: Tensor) -> Tensor:
        # The loss alone can have slopes of zero.
        return loss.per_example(outputs, y) + inner_products(outputs, u)

    return ExampleScalars(few.X, (few.y, random_like(outputs, 0)), scalar)


def trial_points(model: FlatModel, examples: ExampleScalars) -> list[Tensor]:
    """Return the bound θ and, where it hides a part of the network, one beside it.

    Behind a head or a gate of zeros, as many a network begins with, nothing that a part
    computes has an effect: no trial tells it right from wrong before training opens it.

    Parameters
    ----------
    model : FlatModel
    examples : ExampleScalars
        See :func:`trial_scalars`.

    Returns
    -------
    list of Tensor of shape (D,)
        θ first. The other has no zeros; it is left out where the scalars or their
        gradient are not finite there.

    Raises
    ------
    OutOfMemoryError
        As it comes.
    """
    theta = model.theta()
    try:
        gradient = _gradient(model, examples)
        if all(bool(part.any()) for part in gradient.split(model.layout.sizes)):
            return [theta]
        other = torch.cat([part.reshape(-1) for part in beside(model.params)])
        with bound(model, other):
            found = _gradient(model, examples)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # there is no gradient: the check of independence says so
        return [theta]
    return [theta, other] if bool(found.isfinite().all()) else [theta]


@contextmanager
def bound(model: FlatModel, theta: Tensor) -> Iterator[None]:
    """Bind another θ for a while.

    Parameters
    ----------
    model : FlatModel
    theta : Tensor of shape (D,)

    Yields
    ------
    None
    """
    before = model.theta()
    model.bind(theta)
    try:
        yield
    finally:
        model.bind(before)


@torch.enable_grad()
def _gradient(model: FlatModel, examples: ExampleScalars) -> Tensor:
    """Return the gradient of the sum of the scalars; NaN where they are not finite."""
    values = examples.of(model(examples.X))
    if not values.requires_grad:
        return torch.zeros_like(model.theta())
    gradient = model.gradient(values, torch.ones_like(values))
    return torch.where(values.isfinite().all(), gradient, torch.nan)
