"""Kernel: one value and one gradient for each example of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad_and_value

from flatmin.risk.example_scalars import ExampleScalars
from flatmin.risk.model import FlatModel
from flatmin.risk.vectorize import vectorize

__all__ = ["ROW_BUDGET", "values_and_gradients"]

# Numbers in the rows and activations of one call: beyond the caches of a processor
# a larger chunk is slower (LeNet, 1200 images: 200 at a time beat 1200 by a third).
ROW_BUDGET = 1 << 22


def values_and_gradients(
    model: FlatModel, theta: Tensor, examples: ExampleScalars
) -> tuple[Tensor, Tensor]:
    """Return a scalar of each example's output, and its ∇.

    Vectorised by ``vmap`` of ``grad_and_value``; example by example for modules that
    it cannot take (recurrent layers, control flow that depends on data). For an LSTM
    and a GRU on 256 sequences one pass with ``is_grads_batched`` took 2 to 5 times as
    long as that loop.

    Parameters
    ----------
    model : FlatModel
    theta : Tensor of shape (D,)
        Where; the model is bound to it.
    examples : ExampleScalars

    Returns
    -------
    values : Tensor of shape (n,)
    rows : Tensor of shape (n, D)

    Raises
    ------
    OutOfMemoryError
        As it comes: a loop over examples would only hide it.
    """
    if model.vectorises:
        X, args = examples.X, examples.args

        def single(theta: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
            outputs = model.functional(theta, x.unsqueeze(0))
            return examples.scalar(outputs, *(a.unsqueeze(0) for a in rest))[0]

        in_dims = (None, 0, *(0 for _ in args))
        try:
            rows, values = vectorize(grad_and_value(single), in_dims)(theta, X, *args)
            return values, rows
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):
            pass

    every_value, every_row = [], []
    with torch.enable_grad():
        for i in range(len(examples)):
            one = examples[i : i + 1]
            values = one.of(model(one.X))
            every_value.append(values.detach())
            every_row.append(model.gradient(values, torch.ones_like(values)))
    model.vectorises = False
    return torch.cat(every_value), torch.stack(every_row)
