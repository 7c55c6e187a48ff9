"""What a module cuts off from its gradient, kept at the values of one θ.

Where ``detach()``, ``no_grad`` or the padding of an embedding makes a part of θ's
effect a constant, H is that of the loss with the constant held. A difference of the
gradient at two other θ tells the same only if it is held there, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["HeldConstants"]


class HeldConstants(TorchFunctionMode):
    """Records the constants of the first pass inside of it, and gives them to the next.

    A module has to call the same functions in the same order in all passes.

    Attributes
    ----------
    n_held : int
        How many there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: list[Tensor] = []
        self._next = 0
        self._n_passes = 0

    @property
    def n_held(self) -> int:
        """How many there are."""
        return len(self._values)

    def __enter__(self) -> HeldConstants:
        """Begin a pass."""
        self._n_passes, self._next = self._n_passes + 1, 0
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
        is_cut = func is Tensor.detach or not torch.is_grad_enabled()
        if is_cut and isinstance(result, Tensor) and result.is_floating_point():
            return self._held(result)
        return result

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

    def _held(self, value: Tensor) -> Tensor:
        if self._n_passes == 1:
            self._values.append(value.clone())
            return value
        self._next += 1
        return self._values[self._next - 1]
