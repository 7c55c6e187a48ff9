"""What a module cuts off from its gradient, kept at the values of one θ.

Where ``detach()``, ``no_grad`` or the padding of an embedding makes a part of θ's
effect a constant, H is that of the loss with the constant held. A difference of the
gradient at two other θ tells the same only if it is held there, too.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["HeldConstants"]


class HeldConstants(TorchFunctionMode):
    """Records the constants of the first pass inside of it, and gives them to the next.

    A module has to call the same functions in the same order in all passes. What a
    ``torch.autograd.Function`` computes is not held: its derivative is its own, and
    what it keeps for its backward pass changes with θ.

    Attributes
    ----------
    n_held : int
        How many there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: list[Any] = []
        self._next = 0
        self._n_passes = 0
        self._of_functions: dict[int, CodeType] = {}

    @property
    def n_held(self) -> int:
        """How many there are."""
        return len(self._values)

    def __enter__(self) -> HeldConstants:
        """Begin a pass."""
        self._n_passes, self._next = self._n_passes + 1, 0
        codes = _forward_codes(torch.autograd.Function)
        self._of_functions = {id(code): code for code in codes}
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            args, kwargs = self._without_padding(*args, **kwargs)
        result = func(*args, **kwargs)
        goes_on = torch.is_grad_enabled() and not any(map(_has_graph, args))
        return result if goes_on or self._within_function() else self._cut(result)

    def _within_function(self) -> bool:
        """Return whether the caller is inside of an autograd.Function."""
        # PyTorch 2.14 made `apply` a C function, which leaves no frame. So the frame of
        # the Function's own code is looked for.
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if id(frame.f_code) in self._of_functions:
                return True
            frame = frame.f_back
        return False

    def _cut(self, result: Any) -> Any:
        """Return a result. Its numbers that have no graph are held constant."""
        if isinstance(result, tuple):
            return type(result)(map(self._cut, result))  # a named tuple too
        if isinstance(result, Tensor):
            is_constant = result.is_floating_point() and not result.requires_grad
        else:
            is_constant = isinstance(result, float)  # the result of item()
        return self._held(result) if is_constant else result

    def _without_padding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if padding_idx is not None:
            row = self._held(weight[padding_idx].detach())
            rows = torch.arange(len(weight), device=weight.device)
            is_padding = (rows == padding_idx % len(weight)).unsqueeze(1)
            weight = torch.where(is_padding, row, weight)
        return (input, weight, padding_idx, *args), kwargs

    def _held(self, value: Any) -> Any:
        if self._n_passes == 1:
            is_tensor = isinstance(value, Tensor)
            self._values.append(value.detach().clone() if is_tensor else value)
            return value
        self._next += 1
        value = self._values[self._next - 1]
        # A module may fill in a part that θ determines, which is none of the constant.
        return value.clone() if isinstance(value, Tensor) else value


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _forward_codes(base: Any) -> Iterator[CodeType]:
    """Yield the codes that run inside of the subclasses of a Function."""
    for function in base.__subclasses__():
        for name in ("forward", "setup_context", "vmap", "jvp"):
            # The code of a decorator, such as no_grad(), is that of others too.
            code = getattr(inspect.unwrap(getattr(function, name)), "__code__", None)
            if code is not None:
                yield code
        yield from _forward_codes(function)
