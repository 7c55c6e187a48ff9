"""Errors about names: the list of what there is, and the likely meaning."""

import difflib
from collections.abc import Iterable

__all__ = ["check_known"]


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
    if name in known:
        return
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    choices = ", ".join(map(repr, known)) or "none"
    raise ValueError(f"Unknown {kind} {name!r}{hint} There are: {choices}.")
