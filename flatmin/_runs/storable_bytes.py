"""Storable values as bytes that hold no program: JSON, and the numbers of the tensors.

Not ``torch.save``: what reads that is a pickle machine, also with
``weights_only=True``, and was unsafe before PyTorch 2.6 (CVE-2025-32434) and 2.10
(CVE-2026-24747). Here bytes become numbers, strings and containers, and nothing else.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatmin._runs.storable import as_storable, from_storable

__all__ = ["from_bytes", "to_bytes"]

_LENGTH = 8  # bytes that tell the JSON's own

# What reading raises where bytes of something else were altered into JSON.
_NOT_STORABLE = (AttributeError, KeyError, TypeError, RuntimeError, OverflowError)

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.complex64, torch.complex128),
    )
}
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set}
_MAPPINGS: dict[str, Any] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": Counter,
}
_KINDS: dict[Any, str] = {
    kind: name for name, kind in (*_SEQUENCES.items(), *_MAPPINGS.items())
}


def to_bytes(value: Any, title: str) -> bytes:
    """Return a storable value as bytes.

    Parameters
    ----------
    value : object
        As for :func:`flatmin._runs.storable.as_storable`.
    title : str
        What the message calls it.

    Returns
    -------
    bytes
        With the strides of tensors, on which the last bits of a product may depend.

    Raises
    ------
    TypeError
        If it is not storable, or a tensor in it is not one of dense numbers.

    Examples
    --------
    >>> from_bytes(to_bytes({"epochs": (1, 2), 3: torch.ones(2)}, "state"))
    {'epochs': (1, 2), 3: tensor([1., 1.])}
    """
    parts: list[bytes] = []
    node = _encode(as_storable(value, title), parts)
    text = json.dumps(node, separators=(",", ":")).encode("ascii")
    return b"".join([len(text).to_bytes(_LENGTH, "big"), text, *parts])


def from_bytes(content: bytes) -> Any:
    """Return the value of which :func:`to_bytes` made bytes; tensors on the CPU.

    Parameters
    ----------
    content : bytes

    Returns
    -------
    object
        No larger than what ``content`` holds.

    Raises
    ------
    ValueError
        If it is something else.
    """
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "big")
    if not _LENGTH <= end <= len(content):
        raise ValueError("It ends within its first part.")
    rest = memoryview(content)[end:]
    try:
        value, left = _decode(json.loads(content[_LENGTH:end].decode("ascii")), rest)
        found = from_storable(value)
    except (*_NOT_STORABLE, MemoryError) as error:
        raise ValueError(f"It holds more than storable values: {error}") from error
    if left:
        raise ValueError(f"It holds {len(left)} bytes too many.")
    return found


def _encode(value: Any, parts: list[bytes]) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": _encode_tensor(value, parts)}
    kind = _KINDS.get(type(value))
    if kind is None:
        return value
    if kind in _SEQUENCES:
        return {kind: [_encode(item, parts) for item in value]}
    pairs = value.items()
    return {kind: [[_encode(k, parts), _encode(v, parts)] for k, v in pairs]}


def _encode_tensor(tensor: Tensor, parts: list[bytes]) -> list[Any]:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or name not in _DTYPES:
        raise TypeError(
            "A checkpoint can hold dense tensors of numbers. Got one of "
            f"{tensor.layout} and {tensor.dtype}."
        )
    dense = tensor.detach().resolve_conj().resolve_neg().cpu()
    if dense.numel() > _span(dense.shape, dense.stride()):  # of an expanded tensor
        dense = dense.contiguous()
    span = _span(dense.shape, dense.stride())
    flat = dense.as_strided((span,), (1,)).contiguous().view(torch.uint8)
    parts.append(flat.numpy().tobytes())
    return [name, list(dense.shape), list(dense.stride())]


def _span(shape: Any, strides: Any) -> int:
    """Return how many numbers lie between the first and the last one."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _decode(node: Any, rest: memoryview) -> tuple[Any, memoryview]:
    """Return a value, and the bytes of the tensors after it."""
    if not isinstance(node, dict):
        if isinstance(node, list):
            raise TypeError("a list without a kind")
        return node, rest
    ((kind, items),) = node.items()
    if kind == "tensor":
        return _decode_tensor(items, rest)
    found = []
    if kind in _SEQUENCES:
        for item in items:
            value, rest = _decode(item, rest)
            found.append(value)
        return _SEQUENCES[kind](found), rest
    for key, item in items:
        name, rest = _decode(key, rest)
        value, rest = _decode(item, rest)
        found.append((name, value))
    return _MAPPINGS[kind](dict(found)), rest


def _decode_tensor(node: Any, rest: memoryview) -> tuple[Tensor, memoryview]:
    name, shape, strides = node
    dtype = _DTYPES[name]
    counts = [*shape, *strides]
    if not all(type(n) is int and n >= 0 for n in counts) or len(shape) > 64:
        raise TypeError(f"a tensor of shape {shape} and strides {strides}")
    span = _span(shape, strides)
    n_bytes = span * dtype.itemsize
    # With strides of 0 a few bytes could claim to be any number of numbers.
    if n_bytes > len(rest) or math.prod(shape) > span:
        raise TypeError(f"a tensor of shape {shape} in {len(rest)} bytes")
    # In memory of its own, aligned as PyTorch's is: products may depend on it.
    numbers = torch.empty(span, dtype=dtype)
    numbers.view(torch.uint8).numpy()[:] = np.frombuffer(rest[:n_bytes], np.uint8)
    if dtype == torch.bool and span and int(numbers.view(torch.uint8).max()) > 1:
        raise TypeError("a boolean of another value than 0 and 1")
    return numbers.as_strided(shape, strides), rest[n_bytes:]
