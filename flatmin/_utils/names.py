"""Errors about names: the list of what there is, and the likely meaning."""

import difflib
from collections.abc import Iterable

__all__ = ["check_known", "check_text"]


def check_text(what: str, name: object) -> None:
    """Raise unless a name is text that can be written into a file.

    Parameters
    ----------
    what : str
        What the name stands for, as the sentence should call it.
    name : object

    Raises
    ------
    TypeError
        If it is no string.
    ValueError
        If it holds half of a surrogate pair, which UTF-8 does not have.

    Examples
    --------
    >>> check_text("a label of methods", 3)
    Traceback (most recent call last):
    TypeError: a label of methods must be a string. Got 3.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string. Got {name!r}.")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} must be text that a file can hold. Got {name!r}: {error.reason}."
        ) from error


def check_known(kind: str, name: object, known: Iterable[str]) -> None:
    """Raise if a name is not in a list.

    Parameters
    ----------
    kind : str
        What the name stands for, as the sentence should call it.
    name : object
        What was got.
    known : iterable of str
        What there is.

    Raises
    ------
    ValueError
        With the list, and the closest name in it.

    Examples
    --------
    >>> check_known("method", "sdg", ["gd", "sgd"])
    Traceback (most recent call last):
    ValueError: Unknown method 'sdg'; did you mean 'sgd'? There are: 'gd', 'sgd'.
    """
    known = sorted(known)
    if isinstance(name, str) and name in known:
        return
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    choices = ", ".join(map(repr, known)) or "none"
    raise ValueError(f"Unknown {kind} {name!r}{hint} There are: {choices}.")
