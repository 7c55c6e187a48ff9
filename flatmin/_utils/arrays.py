"""Arrays and tensors as they come: what NumPy would misread is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "check_floating",
    "check_one_shape",
    "check_readable",
    "check_scalar_tensor",
    "check_tensor",
    "in_native_order",
    "to_array",
    "to_numpy",
]

_OF_NUMPY = (torch.float16, torch.float32, torch.float64)


def check_readable(name: str, data: Any, *, real: bool = True) -> None:
    """Raise if a plain array of these data would not say what they say.

    NumPy reads a masked array under its mask, and the conversion of a complex number to
    a real one leaves out its imaginary part.

    Parameters
    ----------
    name : str
        For the message.
    data : object
        An array, a tensor, a list of them, or something else.
    real : bool, default=True
        Whether a complex tensor is refused.

    Raises
    ------
    TypeError
        If it is a tensor that is complex, without values or of a layout of its own.
    ValueError
        If entries are masked, or an array is complex.

    Examples
    --------
    >>> check_readable("y", np.ma.array([1, 2], mask=[False, True]))
    Traceback (most recent call last):
    ValueError: y must hold a value in each place. Got a masked array with 1 masked; ...
    """
    if isinstance(data, Tensor):
        _check_dense(name, data, real=real)
        return
    parts = data if isinstance(data, list | tuple) else [data]
    masked = [part for part in parts if np.ma.is_masked(part)]
    if masked:
        n = sum(int(np.ma.getmaskarray(part).sum()) for part in masked)
        raise ValueError(
            f"{name} must hold a value in each place. Got a masked array with {n} "
            "masked; leave those examples out, or fill it: filled(...)."
        )
    for part in parts:
        dtype = getattr(part, "dtype", None)
        if isinstance(part, complex) or getattr(dtype, "kind", "") == "c":
            # In scikit-learn's words, which its checks of estimators look for.
            raise ValueError(
                f"{name} must hold real numbers. Complex data not supported: got "
                f"{dtype or 'complex numbers'}; take .real, or abs()."
            )
        if isinstance(part, Tensor):
            _check_dense(name, part)


def check_one_shape(name: str, data: Any) -> None:
    """Raise if a list, or an array of objects, holds examples of several lengths.

    Parameters
    ----------
    name : str
        For the message.
    data : object

    Raises
    ------
    TypeError
        With the way out.

    Examples
    --------
    >>> check_one_shape("X", [[1, 2], [3]])
    Traceback (most recent call last):
    TypeError: X must be an array of numbers, its examples of one shape. Got lengths ...
    """
    parts = data if isinstance(data, list) else ()
    kind = getattr(getattr(data, "dtype", None), "kind", "")
    if kind == "O" and getattr(data, "ndim", 0) == 1:  # an array, or a column of pandas
        parts = list(data)
    lengths = {
        len(part) if getattr(part, "shape", None) != () else 0
        for part in parts
        if isinstance(part, list | tuple | np.ndarray | Tensor)
    }
    if len(lengths) > 1:
        raise TypeError(
            f"{name} must be an array of numbers, its examples of one shape. Got "
            f"lengths from {min(lengths)} to {max(lengths)}; pad them, for example by "
            "torch.nn.utils.rnn.pad_sequence(..., batch_first=True), and pass a mask, "
            "or the lengths, beside: X={'x': padded, 'mask': mask}, with the names of "
            "the module's arguments."
        )


def to_numpy(name: str, data: Any) -> Any:
    """Return a tensor as the array of its numbers; all else as it is, if readable.

    Parameters
    ----------
    name : str
        For messages.
    data : object

    Returns
    -------
    ndarray or object
        float32 for the short floats that NumPy does not have, which it holds exactly.

    Raises
    ------
    TypeError, ValueError
        As from :func:`check_readable`.

    Examples
    --------
    >>> to_numpy("X", torch.ones(2, dtype=torch.bfloat16))
    array([1., 1.], dtype=float32)
    """
    check_readable(name, data)
    if not isinstance(data, Tensor):
        return data
    tensor = data.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in _OF_NUMPY:
        tensor = tensor.float()
    return tensor.numpy()


def in_native_order(array: np.ndarray) -> np.ndarray:
    """Return an array in this machine's byte order, which PyTorch asks for.

    Parameters
    ----------
    array : ndarray

    Returns
    -------
    ndarray
        Of the same shape; itself where nothing is to be done.

    Examples
    --------
    >>> in_native_order(np.array([1.0], dtype=">f8")).dtype.isnative
    True
    """
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def to_array(
    name: str,
    data: Any,
    shape: tuple[int | None, ...] | None = None,
    *,
    finite: bool = True,
) -> np.ndarray:
    """Return real numbers as an array of float64.

    Parameters
    ----------
    name : str
        For messages.
    data : array-like
    shape : tuple of int or None, default=None
        What it must have; None in it is any length.
    finite : bool, default=True
        Whether NaN and infinity are refused.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError
        If these are no real numbers.
    ValueError
        If the shape does not fit, or one is NaN or infinite.

    Examples
    --------
    >>> to_array("grid", [1, 2], (None,))
    array([1., 2.])
    """
    plain = to_numpy(name, data)
    try:
        array = np.asarray(plain)
        if array.dtype.kind not in "biufO":  # NumPy would turn text into numbers
            raise TypeError(f"it is of dtype {array.dtype}")
        if array.dtype.kind == "O" and any(item is None for item in array.flat):
            raise TypeError("there is a None in it")  # NumPy would make it NaN
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be an array of numbers. Got {type(data).__name__}: {error}."
        ) from error
    fits = shape is None or (
        len(array.shape) == len(shape)
        and all(
            wanted in (None, got)
            for wanted, got in zip(shape, array.shape, strict=True)
        )
    )
    if shape is not None and not fits:
        wanted = ", ".join("n" if n is None else str(n) for n in shape)
        comma = "," if len(shape) == 1 else ""
        raise ValueError(
            f"{name} must have shape ({wanted}{comma}). Got {array.shape}."
        )
    if finite and not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinity.")
    return array


def check_tensor(name: str, value: Any, n_axes: int = 0) -> None:
    """Raise unless a value is a tensor of real numbers with enough axes.

    Parameters
    ----------
    name : str
        For the message.
    value : object
    n_axes : int, default=0
        The least that it must have.

    Raises
    ------
    TypeError
        If it is no tensor, or not of real numbers.
    ValueError
        If it has fewer axes.

    Examples
    --------
    >>> check_tensor("theta", np.ones(2))
    Traceback (most recent call last):
    TypeError: theta must be a Tensor of real numbers. Got ndarray; use ...
    """
    if not isinstance(value, Tensor):
        hint = "; use torch.as_tensor" if isinstance(value, np.ndarray | list) else ""
        raise TypeError(
            f"{name} must be a Tensor of real numbers. Got "
            f"{type(value).__name__}{hint}."
        )
    _check_dense(name, value)
    if value.ndim < n_axes:
        raise ValueError(
            f"{name} must have at least {n_axes} axes. Got shape {tuple(value.shape)}."
        )


def check_scalar_tensor(name: str, value: Any) -> None:
    """Raise unless a value is a tensor of one real number, of shape ().

    Parameters
    ----------
    name : str
        For the message.
    value : object

    Raises
    ------
    TypeError
        As from :func:`check_tensor`.
    ValueError
        If it has axes.
    """
    check_tensor(name, value)
    if value.ndim:
        raise ValueError(f"{name} must have shape (). Got {tuple(value.shape)}.")


def check_floating(name: str, value: Any, n_axes: int = 0) -> None:
    """Raise unless a value is a tensor of a floating dtype; see :func:`check_tensor`.

    Parameters
    ----------
    name : str
        For the message.
    value : object
    n_axes : int, default=0
        The least that it must have.

    Raises
    ------
    TypeError
        As from :func:`check_tensor`, and if it holds integers.
    """
    check_tensor(name, value, n_axes)
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype. Got {value.dtype}.")


def _check_dense(name: str, tensor: Tensor, *, real: bool = True) -> None:
    if tensor.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, with every example as long as the others. "
            "Got a nested tensor; use torch.nested.to_padded_tensor, and pass a mask, "
            "or the lengths, beside."
        )
    if real and tensor.is_complex():
        raise TypeError(
            f"{name} must hold real numbers. Got {tensor.dtype}; take .real, or abs()."
        )
    if tensor.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor. Got {tensor.layout}; use to_dense()."
        )
    if tensor.is_meta or tensor.is_quantized:
        kind = "of the meta device, without values" if tensor.is_meta else "quantized"
        raise TypeError(f"{name} must hold numbers. Got a tensor that is {kind}.")
