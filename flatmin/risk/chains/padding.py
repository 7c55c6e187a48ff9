"""A rule of ``vmap`` that is wrong, found whether the tried examples show it or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from flatmin.risk.failures import NotTaken

__all__ = ["PaddingRefused"]


class PaddingRefused(TorchFunctionMode):
    """Refuses an embedding with padding whose weight and indices are both batched.

    For those, torch 2.13 gives the padding a gradient. Other modules are tried on a few
    examples; this one can be right on those and wrong on the first that has padding.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            _check(*args, **kwargs)
        elif func is torch.embedding:  # in another order, and -1 is none
            weight, indices, padding_idx = (*args, -1)[:3]
            padding_idx = kwargs.get("padding_idx", padding_idx)
            _check(indices, weight, None if padding_idx < 0 else padding_idx)
        return func(*args, **kwargs)


def _check(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, *_: Any, **__: Any
) -> None:
    if padding_idx is None or not is_batchedtensor(input):
        return
    if is_batchedtensor(weight):
        raise NotTaken("the padding of an embedding gets a gradient")
