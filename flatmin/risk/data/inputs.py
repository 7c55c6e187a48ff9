"""What data must be before anything is differentiated."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatmin._utils.arrays import check_one_shape, check_readable, in_native_order
from flatmin._utils.trees import (
    Inputs,
    Tree,
    as_tree,
    check_one_length,
    is_nested,
    leaves_of,
    map_inputs,
)
from flatmin.risk.network.module_copy import copy_module

__all__ = [
    "as_input",
    "as_inputs",
    "as_tensor",
    "channels_last",
    "check_apart",
    "check_held",
    "check_lengths",
]


def as_tensor(
    data: Any,
    name: str,
    device: torch.device,
    *,
    real: bool = True,
    held_in: torch.dtype | None = None,
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
    held_in : torch.dtype, default=None
        The dtype in which floating numbers will be held. No memory is then shared with
        an array, whose owner may write into it, but where that dtype makes a copy.

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
    check_one_shape(name, data)
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
        as_given, array = array, in_native_order(array)
        if not array.flags.writeable or any(step < 0 for step in array.strides):
            array = array.copy()
        try:
            data = torch.from_numpy(array)
        except TypeError as error:  # PyTorch has no such dtype
            raise TypeError(
                f"{name} must have a dtype of PyTorch. Got {array.dtype}."
            ) from error
        is_cast = data.is_floating_point() and data.dtype != held_in
        if held_in is not None and array is as_given and not is_cast:
            data = data.clone()
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


def as_inputs(
    X: Any, device: torch.device, *, held_in: torch.dtype | None = None
) -> Inputs:
    """Return X as a tensor, or as a tree of tensors of one length; see the next.

    Parameters
    ----------
    X : array-like or Tensor of shape (N, ...), or a mapping or a tuple of them
    device : torch.device
        Where they go.
    held_in : torch.dtype, default=None
        As in :func:`as_tensor`.

    Returns
    -------
    Tensor of shape (N, ...) or Tree

    Raises
    ------
    TypeError, ValueError
        As from :func:`as_tensor`, with the name of the leaf; and if leaves differ in
        length.
    """
    if not is_nested(X):
        return as_tensor(X, "X", device, real=False, held_in=held_in)
    tree = as_tree(X)
    leaves = [
        as_tensor(leaf, name, device, real=False, held_in=held_in)
        for name, leaf in tree.named()
    ]
    tree = tree.with_leaves(leaves)
    check_one_length(tree)
    return tree


def as_input(X: Inputs, module: nn.Module, dtype: torch.dtype) -> Any:
    """Give X the module's dtype; integers stay integers where the module takes them.

    A single X of integers becomes floating if the module takes that alone, and long if
    it has an Embedding that takes them so. In a tree integers and masks
    stay what they are.

    Parameters
    ----------
    X : Tensor of shape (N, ...) or Tree
    module : torch.nn.Module
        A copy of it is tried on one example, once.
    dtype : torch.dtype
        Of the parameters. Complex inputs get as many digits.

    Returns
    -------
    Tensor of shape (N, ...) or Tree
    """
    if isinstance(X, Tree):
        return X.map(lambda leaf: _in_precision(leaf, dtype))
    if X.is_complex() or X.is_floating_point():
        return _in_precision(X, dtype)
    known = _INPUT_DTYPES.setdefault(module, {})
    key = (X.shape[1:], X.dtype, dtype)
    if key not in known:
        known[key] = _integer_input(X[:1], module, dtype)
    return X.to(known[key])


def _in_precision(leaf: Tensor, dtype: torch.dtype) -> Tensor:
    if leaf.is_complex():
        return leaf.to(dtype.to_complex())
    return leaf.to(dtype) if leaf.is_floating_point() else leaf


# What became of integers, by module: (shape, dtype, dtype of the module).
_INPUT_DTYPES: weakref.WeakKeyDictionary[nn.Module, dict[Any, torch.dtype]] = (
    weakref.WeakKeyDictionary()
)

# PyTorch stores these, and has hardly an operation for them.
_HARDLY_COMPUTED = (torch.uint16, torch.uint32, torch.uint64)


def _integer_input(X: Tensor, module: nn.Module, dtype: torch.dtype) -> torch.dtype:
    has_embedding = any(
        isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules()
    )
    candidates = [torch.long, dtype] if has_embedding else [dtype, torch.long]
    # A module that takes integers as they are decides itself what they are.
    as_given = [] if X.dtype in _HARDLY_COMPUTED else [X.dtype]
    for candidate in (*as_given, *candidates):
        copied = copy_module(module).eval()
        with torch.no_grad(), suppress(Exception):
            copied(X.to(candidate, copy=True))  # it may write into them
            return candidate
    return candidates[0]


def channels_last(X: Inputs, module: nn.Module) -> Any:
    """Give images the strides that convolutions are fast on.

    Unambiguous with a single channel too, where PyTorch's own
    ``memory_format=torch.channels_last`` leaves the first layer slow (a gradient of
    the LeNet then takes twice as long).

    Parameters
    ----------
    X : Tensor of shape (N, ...) or Tree
        Leaves of four axes are images.
    module : torch.nn.Module
        Without a two-dimensional convolution X stays as it is.

    Returns
    -------
    Tensor of shape (N, ...) or Tree
        X itself where nothing changes.
    """
    has_convolution = any(isinstance(part, nn.Conv2d) for part in module.modules())
    if not has_convolution:
        return X
    fast = map_inputs(_channels_last, X)
    unchanged = zip(leaves_of(fast), leaves_of(X), strict=True)
    return X if all(new is old for new, old in unchanged) else fast


def _channels_last(X: Tensor) -> Tensor:
    if X.ndim != 4:
        return X
    _, c, h, w = X.shape
    strides = (c * h * w, 1, w * c, c)
    if X.stride() == strides:
        return X
    fast = torch.empty_strided(X.shape, strides, dtype=X.dtype, device=X.device)
    return fast.copy_(X)


def check_held(held: Inputs, given: Inputs, name: str) -> None:
    """Check that finite numbers have stayed so in the risk's dtype.

    Parameters
    ----------
    held : Tensor or Tree
    given : Tensor or Tree
        The same before it was converted.
    name : str
        For messages.

    Raises
    ------
    ValueError
        If one is too large.
    """
    named = held.named(name) if isinstance(held, Tree) else [(name, held)]
    for (title, leaf), before in zip(named, leaves_of(given), strict=True):
        if leaf.dtype != before.dtype and not bool(torch.isfinite(leaf).all()):
            raise ValueError(
                f"{title} must fit into {leaf.dtype}. Got numbers up to "
                f"{float(before.abs().max()):.1e}; scale them, or pass dtype='float64'."
            )


def check_apart(given: Inputs, dtype: torch.dtype, name: str) -> None:
    """Check that rounding to the risk's dtype leaves the examples apart.

    Parameters
    ----------
    given : Tensor of shape (n, ...) or Tree
        Before it is converted.
    dtype : torch.dtype
    name : str
        For messages.

    Raises
    ------
    ValueError
        If rounding moves numbers of a column by more than a hundredth of their range.
        Columns whose range is itself rounding in float64 are let pass.
    """
    named = given.named(name) if isinstance(given, Tree) else [(name, given)]
    for title, leaf in named:
        wide = leaf.dtype in (torch.float64, torch.int64, torch.int32)
        if not wide or leaf.dtype == dtype or len(leaf) < 2:
            continue
        columns = leaf.reshape(len(leaf), -1)
        low, high = (end.double() for end in columns.aminmax(dim=0))
        size, spread = torch.maximum(low.abs(), high.abs()), high - low
        doubted = spread * 0.01 < size * torch.finfo(dtype).eps
        doubted &= spread > 1e-9 * size
        for j in doubted.nonzero().flatten().tolist():
            exact = columns[:, j].double()
            off = float((exact.to(dtype).double() - exact).abs().max())
            if off > 0.01 * float(spread[j]):
                raise ValueError(
                    f"{title} must be told apart in {dtype}. Got numbers up to "
                    f"{float(size[j]):.3g} that differ by {float(spread[j]):.3g} at "
                    f"most, and are rounded by {off:.2g}; centre them, or pass "
                    "dtype='float64'."
                )


def check_lengths(
    X: Inputs | np.ndarray, y: Tensor | np.ndarray, names: str = "X and y"
) -> None:
    """Raise unless there are as many inputs as targets.

    Parameters
    ----------
    X : Tensor or ndarray of shape (n, ...), or Tree
    y : Tensor or ndarray of shape (n, ...)
    names : str, default="X and y"
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
