"""What Python tells of a class, a function or an object, alike in every process."""

from __future__ import annotations

import copyreg
import random
import sys
import types
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

__all__ = ["cells_of", "is_hidden", "is_shown", "name_of", "origin_of", "state_of"]


def is_shown(value: Any) -> bool:
    """Tell whether something only shows a run: a figure or a progress bar."""
    kinds = {(kind.__module__, kind.__qualname__) for kind in type(value).__mro__}
    return bool(kinds & {("matplotlib.artist", "Artist"), ("tqdm.std", "tqdm")})


def is_hidden(value: Any) -> bool:
    """Tell whether something is a global generator, seeded by chance."""
    return value is np.random.mtrand._rand or value is random._inst


def origin_of(function: types.FunctionType) -> tuple[str | None, str | None]:
    """Return the module that made a function, and the file if there is no module."""
    # A wrapper bears the module name of the function that it wraps: its globals tell.
    # A function that was sent to another process does not know its file any more.
    name = function.__globals__.get("__name__", function.__module__)
    return name, None if name in sys.modules else function.__code__.co_filename


def name_of(kind: type) -> list[str]:
    """Return module and name of a class, the same in another process."""
    name = kind.__qualname__
    if kind.__module__ == "__main__" or "<locals>" in name:
        name = kind.__name__  # all that is left of it in another process
    return [kind.__module__, name]


def cells_of(function: types.FunctionType) -> list[Any]:
    """Return what a closure holds."""
    contents = []
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # nothing is in it yet
            contents.append(None)
    return contents


def state_of(value: Any) -> Any:
    """Return what pickle would keep of an object; raise TypeError if nothing."""
    registered: Callable[[Any], Any] | None = copyreg.dispatch_table.get(type(value))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            state = registered(value) if registered else value.__reduce_ex__(4)
    except Exception as error:
        if hasattr(value, "__dict__"):
            return vars(value)
        raise TypeError(
            f"A {type(value).__module__}.{type(value).__qualname__} has no value that "
            "could be compared with that of another run, so no run with it could be "
            "found again. Leave it out of what is passed, or give the object that "
            "holds it a method __getstate__ that returns what its results depend on."
        ) from error
    if isinstance(state, str):
        return state
    function, arguments, *rest = state
    if rest and type(rest[0]) is tuple and len(rest[0]) == 2:
        # Attributes and slots, which are attributes in another process.
        first, slots = rest[0]
        if isinstance(first, dict | None) and isinstance(slots, dict):
            rest[0] = {**(first or {}), **slots}
    if rest and type(rest[0]) is dict:
        kept = {
            name
            for kind in type(value).__mro__
            for name, attribute in vars(kind).items()
            if isinstance(attribute, cached_property)
        }
        left = {name: value for name, value in rest[0].items() if name not in kept}
        rest[0] = left or None
    # Items of lists and dicts come as iterators.
    rest = [list(part) if hasattr(part, "__next__") else part for part in rest]
    return [function, arguments, *rest]
