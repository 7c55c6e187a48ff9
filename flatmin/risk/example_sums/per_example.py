"""Kernels: one value and one gradient for each example of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad_and_value

from flatmin._utils.trees import leaves_of, with_leaves
from flatmin.risk.autodiff.compiler import load_compiler
from flatmin.risk.autodiff.isolation import isolated, vectorize
from flatmin.risk.example_sums.scalars import ExampleScalars
from flatmin.risk.network.model import FlatModel

__all__ = ["ROW_BUDGET", "looped_rows", "vectorised_rows"]

# Numbers in the rows and activations of one call: beyond the caches of a processor
# a larger chunk is slower (LeNet, 1200 images: 200 at a time beat 1200 by a third).
ROW_BUDGET = 1 << 22


def vectorised_rows(
    model: FlatModel, theta: Tensor, examples: ExampleScalars
) -> tuple[Tensor, Tensor]:
    """Return a scalar of each example's output, and its ∇, by ``vmap``.

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
    """
    load_compiler()
    leaves, args = leaves_of(examples.X), examples.args

    def single(theta: Tensor, *rest: Tensor) -> Tensor:
        one = [part.unsqueeze(0) for part in rest]
        x = with_leaves(examples.X, one[: len(leaves)])
        return examples.scalar(model.functional(theta, x), *one[len(leaves) :])[0]

    in_dims = (None, *(0 for _ in (*leaves, *args)))
    mapped = vectorize(grad_and_value(single), in_dims)
    rows, values = isolated(lambda: mapped(theta, *leaves, *args))
    return values, rows


@torch.enable_grad()
def looped_rows(model: FlatModel, examples: ExampleScalars) -> tuple[Tensor, Tensor]:
    """Return a scalar of each example's output, and its ∇, one example at a time.

    For modules that ``vmap`` cannot take (recurrent layers, control flow that depends
    on data). For an LSTM and a GRU on 256 sequences one pass with ``is_grads_batched``
    took 2 to 5 times as long.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    examples : ExampleScalars

    Returns
    -------
    values : Tensor of shape (n,)
    rows : Tensor of shape (n, D)
    """
    every_value = []
    rows = model.params[0].detach().new_empty(len(examples), model.layout.n_params)
    for i, row in enumerate(rows):  # in place: of a large network they are held once
        one = examples[i : i + 1]
        values = one.of(model(one.X))
        every_value.append(values.detach())
        row.copy_(model.gradient(values, torch.ones_like(values)))
    return torch.cat(every_value), rows
