"""Errors about names: the list of what there is, and the likely meaning."""

import difflib
from collections.abc import Iterable

__all__ = ["unknown_name"]


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Build the error for a name that is not in a list.

    Parameters
    ----------
    kind : str
        What the name stands for, as the sentence should call it.
    name : object
        What was got.
    known : iterable of str
        What there is.

    Returns
    -------
    ValueError
        To be raised by the caller.

    Examples
    --------
    >>> print(unknown_name("method", "sdg", ["gd", "sgd"]))
    Unknown method 'sdg'; did you mean 'sgd'? There are: 'gd', 'sgd'.
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    choices = ", ".join(map(repr, known)) or "none"
    return ValueError(f"Unknown {kind} {name!r}{hint} There are: {choices}.")
