"""What data must be before anything is differentiated."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatmin._utils.arrays import check_readable
from flatmin.risk.network.module_copy import copy_module

__all__ = ["as_input", "as_tensor", "channels_last", "check_held"]


def as_tensor(
    data: Any, name: str, device: torch.device, *, real: bool = True
) -> Tensor:
    """Return data as a tensor without NaN or infinity, with at least one example.

    Parameters
    ----------
    data : array-like or Tensor
        A read-only array is copied.
    name : str
        For messages.
    device : torch.device
        Where it goes.
    real : bool, default=True
        Whether a complex tensor is refused.

    Returns
    -------
    Tensor

    Raises
    ------
    TypeError
        If it holds anything but numbers, or cannot be read as an array.
    ValueError
        If it is empty, a single number, or not finite.
    """
    check_readable(name, data, real=real)
    if not isinstance(data, Tensor):
        try:
            array = np.asarray(data)
        except ValueError as error:  # rows of several lengths
            raise TypeError(f"{name} must be an array of numbers: {error}") from error
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"{name} must be an array of numbers that holds all examples. Got "
                f"{type(data).__name__} of dtype {array.dtype}; encode labels, and "
                "collect an iterable or a data set into arrays first."
            )
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if not array.flags.writeable or any(step < 0 for step in array.strides):
            array = array.copy()
        try:
            data = torch.from_numpy(array)
        except TypeError as error:  # of a width that PyTorch does not have
            raise TypeError(
                f"{name} must have a dtype of PyTorch. Got {array.dtype}."
            ) from error
    tensor: Tensor = data.detach().to(device)
    if tensor.ndim == 0 or tensor.shape[0] == 0:
        raise ValueError(
            f"{name} must hold at least one example along its first axis. "
            f"Got shape {tuple(tensor.shape)}."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name} contains NaN or infinity. Remove or impute those entries."
        )
    return tensor


def as_input(X: Tensor, module: nn.Module, dtype: torch.dtype) -> Tensor:
    """Give X the module's dtype; integers stay integers where they are indices.

    Integers become floating numbers if the module takes these, but for one with an
    Embedding, which is given integers if it takes them.

    Parameters
    ----------
    X : Tensor of shape (N, ...)
    module : torch.nn.Module
        A copy of it is tried on one example, once.
    dtype : torch.dtype
        Of the parameters. Complex inputs get as many digits.

    Returns
    -------
    Tensor of shape (N, ...)
    """
    if X.is_complex():
        return X.to(dtype.to_complex())
    if X.is_floating_point():
        return X.to(dtype)
    known = _INPUT_DTYPES.setdefault(module, {})
    key = (X.shape[1:], X.dtype, dtype)
    if key not in known:
        known[key] = _integer_input(X[:1], module, dtype)
    return X.to(known[key])


# What became of integers, by module: (shape, dtype, dtype of the module).
_INPUT_DTYPES: weakref.WeakKeyDictionary[nn.Module, dict[Any, torch.dtype]] = (
    weakref.WeakKeyDictionary()
)


def _integer_input(X: Tensor, module: nn.Module, dtype: torch.dtype) -> torch.dtype:
    has_embedding = any(
        isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules()
    )
    candidates = [torch.long, dtype] if has_embedding else [dtype, torch.long]
    for candidate in candidates:
        copied = copy_module(module).eval()
        with torch.no_grad(), suppress(Exception):
            copied(X.to(candidate))
            return candidate
    return candidates[0]


def channels_last(X: Tensor, module: nn.Module) -> Tensor:
    """Give images the strides that convolutions are fast on.

    Unambiguous with a single channel too, where PyTorch's own
    ``memory_format=torch.channels_last`` leaves the first layer slow (a gradient of
    the LeNet then takes twice as long).

    Parameters
    ----------
    X : Tensor of shape (N, ...)
    module : torch.nn.Module
        Without a two-dimensional convolution X stays as it is.

    Returns
    -------
    Tensor of shape (N, ...)
    """
    has_convolution = any(isinstance(part, nn.Conv2d) for part in module.modules())
    if X.ndim != 4 or not has_convolution:
        return X
    _, c, h, w = X.shape
    strides = (c * h * w, 1, w * c, c)
    if X.stride() == strides:
        return X
    fast = torch.empty_strided(X.shape, strides, dtype=X.dtype, device=X.device)
    return fast.copy_(X)


def check_held(held: Tensor, given: Tensor, name: str) -> None:
    """Check that finite numbers have stayed so in the risk's dtype.

    Parameters
    ----------
    held : Tensor
    given : Tensor
        The same before it was converted.
    name : str
        For messages.

    Raises
    ------
    ValueError
        If one is too large.
    """
    if held.dtype != given.dtype and not bool(torch.isfinite(held).all()):
        raise ValueError(
            f"{name} must fit into {held.dtype}. Got numbers up to "
            f"{float(given.abs().max()):.1e}; scale them, or pass dtype='float64'."
        )
