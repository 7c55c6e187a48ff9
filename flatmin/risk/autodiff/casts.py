"""What a module rounds on its way, below the digits of its parameters.

Many published networks compute a norm or a softmax in float32, whatever their
parameters are. With parameters in float64 their outputs have the digits of float32: two
right ways to a derivative then differ by these, and not by those of float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from flatmin.risk.autodiff.plain_mode import PlainMode

__all__ = ["InFloat64", "LowestDtype", "storage_address"]


class LowestDtype(PlainMode):
    """Notes the lowest precision of what depends on the parameters in a pass.

    What does not depend on them, as the angles of a rotary embedding, is a constant of
    the function that is differentiated. So are integers and masks.

    Parameters
    ----------
    params : iterable of Tensor

    Attributes
    ----------
    found : torch.dtype
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__()
        params = list(params)
        self.found = params[0].dtype
        # Kept, for memory that is freed gets another tensor at the same address.
        self._depends = {storage_address(p): p for p in params if p.numel()}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(
            storage_address(leaf) in self._depends
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        ):
            for leaf in tree_leaves(result):
                self._note(leaf)
        return result

    def _note(self, leaf: Any) -> None:
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            if address := storage_address(leaf):
                self._depends.setdefault(address, leaf)
            self.found = max(self.found, leaf.dtype.to_real(), key=_eps)


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def storage_address(tensor: Tensor) -> int:
    """Return where a tensor's memory begins, and 0 where that cannot be told.

    Parameters
    ----------
    tensor : Tensor

    Returns
    -------
    int
    """
    # A sparse tensor has no storage of its own, one inside of vmap no address.
    if tensor.layout != torch.strided:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


_LOWER = (torch.float32, torch.bfloat16, torch.float16)
_CASTS = (Tensor.float, Tensor.bfloat16, Tensor.half)


class InFloat64(TorchFunctionMode):
    """Takes the casts of a module in float64 for casts to float64.

    What it computes then is the same function without its rounding, of which the
    differences of a gradient tell the second derivative to four digits.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _CASTS:
            func = Tensor.double
        args = tuple(map(_widened, args))
        return func(*args, **{k: _widened(v) for k, v in (kwargs or {}).items()})


def _widened(argument: Any) -> Any:
    is_lower = isinstance(argument, torch.dtype) and argument in _LOWER
    return torch.float64 if is_lower else argument
