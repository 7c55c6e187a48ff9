"""What is quoted of other people's errors."""

from __future__ import annotations

__all__ = ["first_line"]


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
