"""X and y together as the X of a module that computes losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flatmin.risk.data.inputs import as_input, as_inputs, as_tensor, check_lengths
from flatmin.risk.data.source import find_source, is_data_set

__all__ = ["beside_targets"]


def beside_targets(
    X: Any,
    y: Any,
    target: str | None,
    *,
    module: nn.Module,
    like: Tensor,
) -> tuple[Any, Any]:
    """Return (X, y), or (X,) where there is no y, as one X, and targets of no meaning.

    Parameters
    ----------
    X : array-like of shape (N, ...), a mapping or a tuple of them, or a data set
    y : array-like of shape (N, ...) or None
    target : str or None
        The name of y in a data set of mappings.
    module : torch.nn.Module
        Which tells whether integers are indices.
    like : Tensor
        Of the module's dtype, on its device.

    Returns
    -------
    X : tuple or Source
    y : Tensor of shape (N,), or None with a data set

    Raises
    ------
    ValueError
        If X and y differ in length, or as from
        :func:`~flatmin.risk.data.inputs.as_inputs`.
    """
    if is_data_set(X):
        source = find_source(X, y, target)
        return (X if source is None else source.joined()), None
    inputs = as_inputs(X, like.device, held_in=like.dtype)
    inputs = as_input(inputs, module, like.dtype)
    unused = torch.zeros(len(inputs), device=like.device)
    X = inputs if isinstance(inputs, Tensor) else inputs.unpacked()
    if y is None:
        return (X,), unused
    y = as_tensor(y, "y", like.device, held_in=like.dtype)
    check_lengths(inputs, y)
    return (X, y), unused
