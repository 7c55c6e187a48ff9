"""Storable values: what a file can hold without holding code."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_storable", "from_storable", "move_storable"]

_ATOMS = (type(None), bool, int, float, str)
_MAPPINGS = (dict, OrderedDict, Counter)
_SEQUENCES = (list, tuple, set)
_ARRAY = "flatmin.ndarray"


def as_storable(value: Any, title: str) -> Any:
    """Return a value with new containers, and refuse what a file cannot hold.

    Parameters
    ----------
    value : object
        Numbers, strings, None, tensors and arrays of numbers, in dicts, lists, tuples
        and sets. NumPy's numbers become Python's. Tensors are not copied.
    title : str
        What the message calls it.

    Returns
    -------
    object
        For :func:`from_storable`, which makes arrays of arrays again.

    Raises
    ------
    TypeError
        With the way to what is something else.

    Examples
    --------
    >>> as_storable({"best": np.float64(0.5), "epochs": (1, 2)}, "state")
    {'best': 0.5, 'epochs': (1, 2)}
    >>> as_storable({"sink": [print]}, "state")
    Traceback (most recent call last):
    TypeError: state['sink'][0] must be made of numbers, strings, None, tensors ...
    """
    if isinstance(value, np.generic):
        value = value.item()
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, Tensor):
        return value.detach()
    if kind is np.ndarray and value.dtype.kind in "bifc":
        return {_ARRAY: torch.tensor(value)}
    if kind in _MAPPINGS:
        return kind(
            {
                as_storable(key, f"a key of {title}"): as_storable(
                    item, f"{title}[{key!r}]"
                )
                for key, item in value.items()
            }
        )
    if kind in _SEQUENCES:
        return kind(as_storable(item, f"{title}[{i}]") for i, item in enumerate(value))
    raise TypeError(
        f"{title} must be made of numbers, strings, None, tensors and arrays, in "
        f"dicts, lists, tuples and sets. Got {kind.__module__}.{kind.__qualname__}."
    )


def from_storable(value: Any) -> Any:
    """Return the value of which :func:`as_storable` made storable values.

    Parameters
    ----------
    value : object

    Returns
    -------
    object

    Examples
    --------
    >>> from_storable(as_storable([np.ones(2)], "state"))
    [array([1., 1.])]
    """
    kind: Any = type(value)
    if kind is dict and value.keys() == {_ARRAY}:
        return value[_ARRAY].numpy()
    if kind in _MAPPINGS:
        return kind({key: from_storable(item) for key, item in value.items()})
    if kind in _SEQUENCES:
        return kind(from_storable(item) for item in value)
    return value


def move_storable(value: Any, device: torch.device) -> Any:
    """Return a storable value with its tensors on a device.

    Parameters
    ----------
    value : object
        As from :func:`from_storable`.
    device : torch.device

    Returns
    -------
    object
    """
    if isinstance(value, Tensor):
        return value.to(device)
    kind: Any = type(value)
    if kind in _MAPPINGS:
        return kind({key: move_storable(item, device) for key, item in value.items()})
    if kind in _SEQUENCES:
        return kind(move_storable(item, device) for item in value)
    return value
