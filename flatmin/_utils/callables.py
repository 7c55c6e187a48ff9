"""Errors about functions that users hand in, before they are called."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["check_callable"]


def check_callable(name: str, function: Any, *arguments: str) -> None:
    """Raise unless something can be called with so many arguments.

    Parameters
    ----------
    name : str
        Of the parameter, for the message.
    function : object
    *arguments : str
        What it is called with, for the message.

    Raises
    ------
    TypeError
        If it is no function, or takes other arguments; what has no signature passes.

    Examples
    --------
    >>> check_callable("on_unit", lambda: 0, "result")
    Traceback (most recent call last):
    TypeError: on_unit must be a function of (result). Got ...: too many positional ...
    """
    wanted = f"{name} must be a function of ({', '.join(arguments)})"
    if not callable(function):
        raise TypeError(f"{wanted}. Got {function!r}.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin does not tell its arguments
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{wanted}. Got {function!r}: {error}.") from error
