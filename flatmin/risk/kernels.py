"""Which of PyTorch's kernels can be differentiated twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["twice_differentiable"]


@contextlib.contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Choose kernels that have a second derivative.

    The fused attention kernels and the fused recurrent layers of oneDNN and cuDNN
    have a first derivative only; the second one of the fused weight norm is wrong, and
    forward mode of group norm fails for channels-last images (torch 2.13).

    Parameters
    ----------
    module : torch.nn.Module
        Decides whether the recurrent kernels have to be switched off.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_PlainKernels())
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            stack.enter_context(_switched_off(torch.backends.mkldnn))
            stack.enter_context(_switched_off(torch.backends.cudnn))
        yield


class _PlainKernels(TorchFunctionMode):
    """Calls of other kernels in place of two whose derivatives fail."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch._weight_norm:
            v, g, dim = args  # w = g v/‖v‖, spelled out
            return v * (g / torch.norm_except_dim(v, 2, dim))
        if func in (F.group_norm, torch.group_norm):
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _switched_off(backend: Any) -> Iterator[None]:
    # Its own ``flags`` sets the other flags too, and warns of one without a GPU.
    before = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = before
