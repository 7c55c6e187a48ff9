"""A function as the network calls it, and the tensors among its arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Invocation", "flat", "tensors_in"]


@dataclass(frozen=True)
class Invocation:
    """A function as the network calls it."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    used: set[int]  # the id of each parameter among its tensors
    is_constant: bool  # no tensor of it depends on the examples


def flat(values: Iterable[Any]) -> Iterator[Any]:
    """Yield values, and those in lists and tuples among them.

    Parameters
    ----------
    values : iterable

    Yields
    ------
    object
    """
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(value)
        else:
            yield value


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Return the tensors among values, and in lists and tuples among them.

    Parameters
    ----------
    values : iterable

    Returns
    -------
    iterator of Tensor
    """
    return (value for value in flat(values) if isinstance(value, Tensor))
