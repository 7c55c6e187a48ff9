"""Docstrings of classes that share parameters, which are documented once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TypeVar

__all__ = ["with_entries"]

Class = TypeVar("Class", bound=type)


def with_entries(
    *, parameters: str = "", attributes: str = ""
) -> Callable[[Class], Class]:
    """Return a decorator that completes the docstring of a class.

    Parameters
    ----------
    parameters : str, default=""
        Entries of numpydoc that the class need not list. What it lists itself stands
        in their place. All come in the order of its constructor.
    attributes : str, default=""
        The same of its attributes, before those that it lists.

    Returns
    -------
    callable
        Takes a class, and returns it.

    Examples
    --------
    >>> @with_entries(parameters="width : int\\n    Of all.")
    ... class Layer:
    ...     '''A layer.
    ...
    ...     Parameters
    ...     ----------
    ...     depth : int
    ...
    ...     '''
    ...
    ...     def __init__(self, width, depth):
    ...         pass
    >>> [line for line in Layer.__doc__.splitlines() if " : " in line]
    ['width : int', 'depth : int']
    """

    def complete(kind: Class) -> Class:
        doc = inspect.cleandoc(kind.__doc__ or "")  # none with python -OO
        order = list(inspect.signature(kind).parameters)
        for title, shared in (("Parameters", parameters), ("Attributes", attributes)):
            heading = f"{title}\n{'-' * len(title)}\n"
            if not shared:
                continue
            if heading not in doc:
                doc = doc.replace("See Also\n", f"{heading}\n\nSee Also\n", 1)
            before, _, rest = doc.partition(heading)
            own, _, after = rest.partition("\n\n")
            entries = _entries(shared) | _entries(own)
            if title == "Parameters":
                entries = {name: entries[name] for name in order if name in entries}
            doc = f"{before}{heading}{''.join(entries.values())}\n{after}"
        kind.__doc__ = doc
        return kind

    return complete


def _entries(section: str) -> dict[str, str]:
    """Split a section of numpydoc at its names."""
    parts = re.split(r"(?m)^(?=\w+ : )", section)
    return {part.partition(" : ")[0]: f"{part.strip()}\n" for part in parts[1:]}
