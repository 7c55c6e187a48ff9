"""What is quoted of other people's errors and objects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "first_line",
    "message",
    "naming",
    "shown",
]


def message(error: BaseException) -> str:
    """Return an exception's message, whatever its class makes of ``str``.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    str
        Which UTF-8 can hold. Where ``str`` fails, that it does.

    Examples
    --------
    >>> class Mute(ValueError):
    ...     def __str__(self):
    ...         return 1 / 0
    >>> message(ValueError("no")), message(Mute())
    ('no', 'no message: str of this Mute raised ZeroDivisionError')
    """
    try:
        return _whole(str(error))
    except Exception as second:
        raised = type(second).__name__
        return f"no message: str of this {type(error).__name__} raised {raised}"


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the parameter in errors of other libraries about it.

    Parameters
    ----------
    name : str
        Of the parameter.

    Yields
    ------
    None

    Raises
    ------
    TypeError
        As within, with the name in front unless it is there.
    ValueError
        The same.

    Examples
    --------
    >>> with naming("X"):
    ...     float("x")
    Traceback (most recent call last):
    ValueError: X cannot be used: could not convert string to float: 'x'
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} cannot be used: {error}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if it has none.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    str
        Without a full stop at its end.

    Examples
    --------
    >>> first_line(ValueError("no.\\nmore")), first_line(ValueError())
    ('no', 'ValueError')
    """
    lines = message(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def shown(value: Any) -> str:
    """Return the ``repr`` of an object, or its class where that fails.

    Parameters
    ----------
    value : object

    Returns
    -------
    str

    Examples
    --------
    >>> class Shy:
    ...     def __repr__(self):
    ...         return 1 / 0
    >>> shown([1]), shown(Shy())
    ('[1]', '<Shy>')
    """
    try:
        return _whole(repr(value))
    except Exception:
        return f"<{type(value).__name__}>"


def _whole(text: str) -> str:
    """Return a text as an instance of str itself, with lone surrogates escaped."""
    return str.encode(text, "utf-8", "backslashreplace").decode()
