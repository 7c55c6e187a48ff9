"""What is quoted of other people's errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["first_line", "naming"]


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
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
