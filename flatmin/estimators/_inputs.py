"""What may come as X, and what the module is given of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor, nn
from torch.utils import data

from flatmin.risk.checks import as_input, as_tensor
from flatmin.risk.model import first_output

__all__ = ["check_inputs", "check_lengths", "first_output", "network_input"]


def check_inputs(estimator: Any, X: Any, *, reset: bool) -> np.ndarray:
    """Check X, and learn from it what later ones must look like if ``reset``.

    Parameters
    ----------
    estimator : estimator
        Gets, or has, ``n_features_in_``, ``feature_names_in_`` and ``_input_shape``.
    X : array-like of shape (n_samples, n_features, ...)
    reset : bool
        Whether X is to be trained on.

    Returns
    -------
    ndarray of shape (n_samples, n_features, ...)

    Raises
    ------
    TypeError
        If it does not hold all examples at once.
    ValueError
        If its shape, its names or its values do not fit.
    """
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    is_array_like = hasattr(X, "__len__") or hasattr(X, "__array__")
    if isinstance(X, data.Dataset | data.DataLoader) or not is_array_like:
        raise TypeError(
            "X must be an array, a tensor or a data frame: gradients of all "
            f"examples are taken again and again. Got {type(X).__name__}; collect "
            "its examples first, for example by np.stack(list(X))."
        )
    X = validate_data(
        estimator,
        X,
        reset=reset,
        allow_nd=True,
        ensure_min_samples=2 if reset else 1,
        dtype="numeric",
    )
    if reset:
        estimator._input_shape = X.shape[1:]
    elif X.shape[1:] != estimator._input_shape:
        raise ValueError(
            f"X must have the shape of the training data, "
            f"{('n', *estimator._input_shape)}. Got {('n', *X.shape[1:])}."
        )
    return X


def check_lengths(X: np.ndarray, y: np.ndarray, names: str) -> None:
    """Raise unless there are as many inputs as targets.

    Parameters
    ----------
    X : ndarray of shape (n, ...)
    y : ndarray of shape (n, ...)
    names : str
        What the message calls them.

    Raises
    ------
    ValueError
        With both numbers.
    """
    if len(X) != len(y):
        raise ValueError(
            f"{names} must have as many examples. Got {len(X)} and {len(y)}."
        )


def network_input(X: np.ndarray, module: nn.Module, dtype: torch.dtype) -> np.ndarray:
    """Return X in the form that the module takes, for skorch.

    Parameters
    ----------
    X : ndarray of shape (n_samples, ...)
    module : torch.nn.Module
    dtype : torch.dtype
        Of its parameters.

    Returns
    -------
    ndarray of shape (n_samples, ...)
    """
    tensor = as_tensor(X, "X", torch.device("cpu"))
    return as_input(tensor, module, dtype).numpy()
