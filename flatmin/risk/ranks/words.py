"""Methods that make one rank's part, and put the parts of all ranks together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from flatmin.risk.ranks.collectives import Ranks, find_ranks
from flatmin.risk.ranks.shard import Shard

__all__ = ["announced", "gathered", "made_on_all_ranks", "over_ranks", "summed"]

Method = TypeVar("Method", bound=Callable[..., Any])


def over_ranks(
    spread: Callable[[Any, Any, Any], tuple[Tensor, ...]],
    finish: Callable[[Any, Any, tuple[Tensor, ...]], Any],
) -> Callable[[Method], Method]:
    """Let a method make this rank's part, and put the parts together once.

    Where one such method calls another, the inner one returns this rank's part.

    Parameters
    ----------
    spread : callable
        Of the object, the part and the first argument of the method: what is summed.
    finish : callable
        Of the object, the part and the sums.

    Returns
    -------
    callable
        A decorator, for methods of an object with ``_ranks``, ``_shard``, ``_lock``.
    """

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def word(self: Any, *args: Any, **kwargs: Any) -> Any:
            ranks: Ranks = self._ranks
            if ranks.size == 1:
                return method(self, *args, **kwargs)
            with self._lock:
                if ranks.within:
                    return method(self, *args, **kwargs)
                with ranks.together(method.__name__) as asked:
                    part = method(self, *args, **kwargs)
                    asked += (*args, *kwargs.values())
                    summands = spread(self, part, asked[0] if asked else None)
                    asked.append(getattr(self, "theta", None))
                    asked.append(torch.tensor([one.numel() for one in summands]))
                return finish(self, part, ranks.sum(*summands))

        return cast(Method, word)

    return decorate


def _summands(self: Any, part: Any, _first: Any) -> tuple[Tensor, ...]:
    several = part if isinstance(part, tuple) else (part,)
    if self._shard.counts:
        return several
    return tuple(torch.zeros_like(one) for one in several)


def _as_found(_self: Any, part: Any, sums: tuple[Tensor, ...]) -> Any:
    return sums if isinstance(part, tuple) else sums[0]


# What the method returns is a sum over examples, or several of them.
summed = over_ranks(_summands, _as_found)


def gathered(before: int = 0) -> Callable[[Method], Method]:
    """Let a method return numbers of this rank's examples; those of all are gathered.

    Parameters
    ----------
    before : int, default=0
        Axes in front of the chains. The first argument, (\\*chains, D), tells how many
        chains there are; the examples follow. Without arguments there are none.

    Returns
    -------
    callable
    """

    def spread(self: Any, part: Tensor, first: Tensor | None) -> tuple[Tensor]:
        axis = before + (0 if first is None else first.ndim - 1)
        return (self._shard.spread(part, axis),)

    return over_ranks(spread, _as_found)


def announced(method: Method) -> Method:
    """Let a method that needs no other rank, but those who wait for it, raise for all.

    Parameters
    ----------
    method : callable
        Of an object with ``_ranks``.

    Returns
    -------
    callable
    """

    @functools.wraps(method)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._ranks.announced(method.__name__):
            return method(self, *args, **kwargs)

    return cast(Method, told)


def made_on_all_ranks(init: Method) -> Method:
    """Let a risk be made by all ranks together, each of which has its ``_ranks``.

    Parameters
    ----------
    init : callable
        ``__init__``, with a keyword ``distributed``: a bool, or the shard that X and y
        are. Before, ``_shard`` is that shard or None.

    Returns
    -------
    callable
    """

    @functools.wraps(init)
    def make(self: Any, *args: Any, distributed: Any = False, **kwargs: Any) -> None:
        known = isinstance(distributed, Shard)
        self._ranks = find_ranks(True if known else distributed)
        self._shard = distributed if known else None
        with self._ranks.announced("EmpiricalRisk"):
            init(self, *args, **kwargs)
        self._ranks.agree("EmpiricalRisk", self.params(), *self._model.module.buffers())

    return cast(Method, make)
