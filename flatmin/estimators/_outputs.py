"""What the network puts out, around skorch's data loader and its seeds."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from flatmin._utils.arrays import to_numpy
from flatmin._utils.trees import call_with, leaves_of, map_inputs
from flatmin.estimators._examples import Examples
from flatmin.estimators._inputs import iterate_inputs
from flatmin.risk.autodiff.surroundings import as_differentiated, modes_put_back
from flatmin.risk.data.inputs import as_input
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.network.outputs import OutputTransform, read_output
from flatmin.risk.network.prepared_module import evaluation_mode

__all__ = ["outputs_and_targets", "try_first"]


@modes_put_back
def outputs_and_targets(
    estimator: Any, X: Any, module: nn.Module | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the outputs for X, and the targets that a data set has, by one pass.

    Parameters
    ----------
    estimator : estimator
        Fitted.
    X : array-like of shape (n_samples, n_features, ...), a mapping, or a data set
    module : torch.nn.Module, default=None
        None is the estimator's own; another one of the same form.

    Returns
    -------
    outputs : ndarray of shape (n_samples, ...)
    targets : ndarray of shape (n_samples, ...) or None
    """
    check_is_fitted(estimator)
    module = estimator.module_ if module is None else module
    first = next(module.parameters())

    def on_device(leaf: np.ndarray) -> Tensor:
        return torch.as_tensor(leaf.copy(), device=first.device)

    outputs, targets = [], []
    with as_differentiated(module, keeps_graph=estimator._keeps_graph):
        for rows, y in iterate_inputs(estimator, X, estimator._chunk_size):
            part = as_input(map_inputs(on_device, rows), module, first.dtype)
            output = read_output(call_with(module, part), estimator.output_transform)
            outputs.append(output.detach().cpu().numpy())
            if y is not None:
                targets.append(to_numpy("y", y))
    return np.concatenate(outputs), np.concatenate(targets) if targets else None


def try_first(
    module: nn.Module,
    examples: Examples,
    *,
    dtype: torch.dtype,
    device: torch.device,
    output_transform: OutputTransform | None,
) -> Tensor:
    """Return the outputs for one example, or an input where there are none.

    What the module cannot take, or does not return, the risk will say.

    Parameters
    ----------
    module : torch.nn.Module
        A copy of it is called.
    examples : Examples
    dtype : torch.dtype
        Of the module.
    device : torch.device
        The same.
    output_transform : callable or None

    Returns
    -------
    Tensor of shape (1, ...)
    """
    first = map_inputs(
        lambda leaf: leaf.to(device, copy=True),  # the module may write into it
        examples.first_input(),
    )
    first = as_input(first, module, dtype)
    with torch.no_grad(), suppress(RuntimeError, TypeError, ValueError):
        returned = call_with(evaluation_mode(copy_module(module)), first)
        return read_output(returned, output_transform)
    return leaves_of(first)[0]
