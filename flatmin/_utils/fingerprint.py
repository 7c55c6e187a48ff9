"""What a computation depends on, as plain values, and their hashes."""

from __future__ import annotations

import types
from collections.abc import Mapping, Set
from functools import partial
from typing import Any

import joblib
import numpy as np
from torch import Tensor, nn

__all__ = ["check_identity", "fingerprint", "hashes"]

_PLAIN = (str, bytes, bool, int, float, complex, type(None), np.generic)
_OF_EVERY_MODULE = vars(nn.Module()).keys()


def fingerprint(value: Any) -> Any:
    """Describe a value by plain values, alike for alike values in any process.

    ``joblib.hash`` of a module is not stable, and a default ``repr`` holds an address
    that another object may have later. Functions count by name and code (not by the
    globals they read), objects by class and attributes, modules by class, ``repr``,
    attributes, parameters and buffers: what their ``repr`` leaves out, like the weights
    of a loss, matters too.

    Parameters
    ----------
    value : object

    Returns
    -------
    object
        Strings, numbers, contiguous arrays, lists and dicts of them.

    Examples
    --------
    >>> fingerprint({"loss": "cross_entropy", "betas": (0.9, 0.99)})
    {'loss': 'cross_entropy', 'betas': [0.9, 0.99]}
    """
    return _describe(value, ())


def hashes(identity: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash for each thing that a run depends on.

    Parameters
    ----------
    identity : mapping of str to object

    Returns
    -------
    dict of str to str
    """
    return {
        name: str(joblib.hash(fingerprint(value))) for name, value in identity.items()
    }


def check_identity(
    path: Any, found: Mapping[str, str], wanted: Mapping[str, str]
) -> None:
    """Raise unless a checkpoint is of the run that is to go on.

    Parameters
    ----------
    path : path-like
        For the message.
    found : mapping of str to str
        Its hashes.
    wanted : mapping of str to str
        Those of the run.

    Raises
    ------
    ValueError
        With the names of what differs.
    """
    names = {*found, *wanted}
    different = sorted(name for name in names if found.get(name) != wanted.get(name))
    if different:
        raise ValueError(
            f"{path} holds a run that differs from this one in "
            f"{', '.join(different)}. Pass what that run was begun with, or another "
            "checkpoint_dir."
        )


def _describe(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if id(value) in above:
        return "itself"
    above = (*above, id(value))
    if isinstance(value, Tensor):
        return np.ascontiguousarray(value.detach().cpu().numpy())
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value)
    if isinstance(value, Mapping):
        return {str(key): _describe(item, above) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item, above) for item in value]
    if isinstance(value, Set):
        return sorted(map(repr, value))
    if isinstance(value, type | types.BuiltinFunctionType):
        return [value.__module__, value.__qualname__]
    if isinstance(value, types.FunctionType):
        return _describe_function(value, above)
    if isinstance(value, types.MethodType):
        return [_describe(part, above) for part in (value.__func__, value.__self__)]
    if isinstance(value, partial):
        parts = (value.func, value.args, value.keywords)
        return [_describe(part, above) for part in parts]
    if isinstance(value, nn.Module):
        return _describe_module(value, above)
    settings = vars(value) if hasattr(value, "__dict__") else repr(value)
    return [_describe(part, above) for part in (type(value), settings)]


def _describe_function(function: types.FunctionType, above: tuple[int, ...]) -> Any:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    held = (function.__defaults__, function.__kwdefaults__, cells)
    return [
        function.__module__,
        function.__qualname__,
        _describe_code(function.__code__, above),
        *(_describe(part, above) for part in held),
    ]


def _describe_code(code: types.CodeType, above: tuple[int, ...]) -> Any:
    """Describe what a function does, and the functions that it makes."""
    constants = [
        _describe_code(constant, above)
        if isinstance(constant, types.CodeType)
        else _describe(constant, above)
        for constant in code.co_consts
    ]
    return [code.co_code, list(code.co_names), constants]


def _describe_module(module: nn.Module, above: tuple[int, ...]) -> Any:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    settings = {}
    for path, part in module.named_modules():
        of_torch = type(part).__module__.startswith("torch.")
        settings[path] = {
            name: _describe(held, above)
            for name, held in vars(part).items()
            # Private attributes of torch's own layers follow from the public ones.
            if name not in _OF_EVERY_MODULE and not (of_torch and name[0] == "_")
        }
    return [
        _describe(type(module), above),
        repr(module),
        _describe(tensors, above),
        settings,
    ]
