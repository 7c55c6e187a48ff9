"""One θ or many: which of the two a word of a risk is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor

__all__ = ["over_chains"]

Method = TypeVar("Method", bound=Callable[..., Any])


def over_chains(method: Method) -> Method:
    """Let a word of a risk take θ of shape (\\*chains, D), too.

    The method itself sees θ of shape (D,) alone. With leading dimensions the method of
    the same name of ``_over_chains`` is called.

    Parameters
    ----------
    method : callable
        Of an object that has ``_over_chains``; its first argument is θ.

    Returns
    -------
    callable
    """

    @functools.wraps(method)
    def by_shape(self: Any, theta: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(theta, Tensor) and theta.ndim > 1:
            return getattr(self._over_chains, method.__name__)(theta, *args, **kwargs)
        return method(self, theta, *args, **kwargs)

    return cast(Method, by_shape)
