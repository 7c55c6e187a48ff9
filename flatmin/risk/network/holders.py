"""Where a function can keep something from call to call."""

from __future__ import annotations

from types import ModuleType

from torch import nn

__all__ = ["holders"]


def holders(function: object) -> list[object]:
    """Return the objects with attributes that belong to a function.

    Parameters
    ----------
    function : object
        A function; an object that is called; a method, which belongs to its object.

    Returns
    -------
    list of object
        Of a module each of its parts.

    Examples
    --------
    >>> len(holders(nn.Sequential(nn.ReLU(), nn.Flatten()))), holders(abs)
    (3, [])
    """
    owner = getattr(function, "__self__", function)
    parts = owner.modules() if isinstance(owner, nn.Module) else [owner]
    return [part for part in parts if _has_own(part)]


def _has_own(part: object) -> bool:
    return hasattr(part, "__dict__") and not isinstance(part, ModuleType)
