"""Kernel: one gradient for each example of a chunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from flatmin.risk.model import FlatModel
from flatmin.risk.vectorize import vectorize

__all__ = ["ROW_BUDGET", "per_example_rows"]

# Numbers in the rows and activations of one call: beyond the caches of a processor
# a larger chunk is slower (LeNet, 1200 images: 200 at a time beat 1200 by a third).
ROW_BUDGET = 1 << 22


def per_example_rows(
    model: FlatModel,
    theta: Tensor,
    X: Tensor,
    args: tuple[Tensor, ...],
    scalar: Callable[..., Tensor],
) -> Tensor:
    """Return ∇ of a scalar of each example's output.

    Vectorised by ``vmap`` of ``grad``; example by example for modules that it cannot
    take (recurrent layers, control flow that depends on data). For an LSTM and a GRU
    on 256 sequences one pass with ``is_grads_batched`` took 2 to 5 times as long as
    that loop.

    Parameters
    ----------
    model : FlatModel
    theta : Tensor of shape (D,)
        Where; the model is bound to it.
    X : Tensor of shape (n, ...)
    args : tuple of Tensor of shape (n, ...)
        Further per-example arguments of ``scalar``.
    scalar : callable
        Maps outputs ``(n, ...)`` and ``args`` to one number an example, ``(n,)``.

    Returns
    -------
    Tensor of shape (n, D)

    Raises
    ------
    OutOfMemoryError
        As it comes: a loop over examples would only hide it.
    """
    if model.vectorises:

        def single(theta: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
            outputs = model.functional(theta, x.unsqueeze(0))
            return scalar(outputs, *(a.unsqueeze(0) for a in rest))[0]

        in_dims = (None, 0, *(0 for _ in args))
        try:
            return vectorize(grad(single), in_dims)(theta, X, *args)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):
            pass

    rows = []
    with torch.enable_grad():
        for i in range(len(X)):
            one = slice(i, i + 1)
            values = scalar(model(X[one]), *(a[one] for a in args))
            rows.append(model.gradient(values, torch.ones_like(values)))
    model.vectorises = False
    return torch.stack(rows)
