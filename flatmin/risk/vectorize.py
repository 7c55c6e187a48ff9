"""``vmap`` without its remark on speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.func import vmap

from flatmin._utils.quiet import ignored

__all__ = ["vectorize"]

T = TypeVar("T")


def vectorize(
    function: Callable[..., T], in_dims: int | tuple[int | None, ...] = 0
) -> Callable[..., T]:
    """Map a function over examples.

    An operation without a batching rule is looped over, and PyTorch warns of it. The
    result is right, and whoever runs another's module cannot do anything about it.

    Parameters
    ----------
    function : callable
        Of one example.
    in_dims : int or tuple of (int or None), default=0
        As in ``torch.func.vmap``.

    Returns
    -------
    callable
    """
    mapped = vmap(function, in_dims)

    def quietly(*args: Tensor) -> T:
        with ignored(message="There is a performance drop"):
            result: T = mapped(*args)
        return result

    return quietly
