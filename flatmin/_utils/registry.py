"""Tables of things by name that users may add to."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

from joblib.externals.loky.backend.reduction import (  # type: ignore[import-untyped]
    dumps,
)

from flatmin._utils.names import check_text

__all__ = ["enter", "pack", "unpack"]

Thing = TypeVar("Thing")


def enter(
    kind: str, table: MutableMapping[str, Thing], name: Any, thing: Thing
) -> None:
    """Enter a thing under a name that nothing else has.

    Parameters
    ----------
    kind : str
        What the name stands for, as messages should call it.
    table : mutable mapping of str to object
    name : str
    thing : object
        A class or a function. One of the same module and the same qualified name is
        the same thing, written anew as in a notebook: it takes the place of the first.

    Raises
    ------
    TypeError
        If the name is no string.
    ValueError
        If it is empty, or the name of another thing.

    Examples
    --------
    >>> table = {"len": len}
    >>> enter("function", table, "len", max)
    Traceback (most recent call last):
    ValueError: The name of a function must be free. Got 'len', which is builtins.len...
    """
    check_text(f"The name of a {kind}", name)
    if not name:
        raise ValueError(f"The name of a {kind} must not be empty. Got ''.")
    if name in table and _address(table[name]) != _address(thing):
        raise ValueError(
            f"The name of a {kind} must be free. Got {name!r}, which is "
            f"{_address(table[name])}; choose another."
        )
    table[name] = thing


def pack(table: Mapping[str, Any], built_in: Collection[Any]) -> dict[str, bytes]:
    """Return what users have entered, for a process that knows nothing of it.

    A search sets names in its workers, so every pickle brings all of them. What cannot
    be imported there, as from a notebook, is written whole.

    Parameters
    ----------
    table : mapping of str to object
    built_in : collection of object
        What every process has.

    Returns
    -------
    dict of str to bytes
    """
    packed: dict[str, bytes] = {}
    for name, thing in table.items():
        if thing not in built_in:
            # Without what cannot be pickled. Another process will not know its name.
            with suppress(Exception):
                packed[name] = bytes(dumps(thing))
    return packed


def unpack(table: MutableMapping[str, Any], packed: Mapping[str, bytes]) -> None:
    """Enter what :func:`pack` returned, unless its name is known.

    Parameters
    ----------
    table : mutable mapping of str to object
    packed : mapping of str to bytes
        What this process cannot import is left out.
    """
    for name, content in packed.items():
        if name not in table:
            with suppress(Exception):
                table[name] = pickle.loads(content)


def _address(thing: Any) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"
