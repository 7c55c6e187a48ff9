"""Hashes of what a computation depends on: its values and its code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatmin._runs.description import Description, hash_description

__all__ = ["check_identity", "fingerprint", "hashes"]


def fingerprint(value: Any) -> Any:
    """Describe a value, alike for alike values in any process.

    ``joblib.hash`` of a module is not stable, and a default ``repr`` holds an address
    that another object may have later. So objects count by their class and by what
    ``pickle`` would keep of them, functions by their bytecode and by what they hold,
    modules by class, ``repr``, attributes, hooks, parameters and buffers.

    Parameters
    ----------
    value : object

    Returns
    -------
    object
        Strings, numbers, contiguous arrays, lists and dicts of them. What the code of
        functions and classes reaches is not in it: see :func:`hashes`.

    Raises
    ------
    TypeError
        If something in it has no value that another process could know.

    Examples
    --------
    >>> fingerprint({"loss": "cross_entropy", "betas": (0.9, 0.99)})
    {'loss': 'cross_entropy', 'betas': [0.9, 0.99]}
    """
    return Description().of(value)


def hashes(identity: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash for each thing that a run depends on, and for the code of it.

    Code is followed from function to function: the globals that it reads, the modules
    that it imports, the classes of the objects that it uses with all their methods. It
    is followed as far as its files lie outside of installed packages; of those it is
    the version that counts. What is looked up by a name in a string is not found. The
    order of a dict does not count, nor whether a sequence is a list or a tuple.

    The hash is of the code that Python runs, not of its source, which may have been
    edited since it was imported. So a comment changes nothing, and another version of
    Python is another code.

    Parameters
    ----------
    identity : mapping of str to object

    Returns
    -------
    dict of str to str
        By the names in ``identity``, and by names such as "the function train.loss",
        "the global train.SCALE", "the package scipy".

    Raises
    ------
    TypeError
        If something in it has no value that another process could know.
    """
    description = Description()
    found = {}
    for name, value in identity.items():
        try:
            found[name] = hash_description(description.of(value))
            description.follow()
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from error
        except RecursionError as error:
            raise TypeError(f"{name} is nested too deeply to be described.") from error
    return found | description.code()


def check_identity(
    path: Any, found: Mapping[str, str], wanted: Mapping[str, str]
) -> None:
    """Raise unless a checkpoint is of the run that is to go on.

    Parameters
    ----------
    path : path-like
        For the message.
    found : mapping of str to str
        Its hashes.
    wanted : mapping of str to str
        Those of the run.

    Raises
    ------
    ValueError
        With the names of what differs.
    """
    names = {*found, *wanted}
    different = sorted(name for name in names if found.get(name) != wanted.get(name))
    if different:
        raise ValueError(
            f"{path} holds a run that differs from this one in "
            f"{', '.join(different)}. Pass what that run was begun with, or another "
            "checkpoint_dir."
        )
