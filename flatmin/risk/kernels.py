"""Which of PyTorch's kernels can be differentiated twice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["twice_differentiable"]

_SWITCHES = threading.RLock()


@contextlib.contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Choose kernels that have a second derivative.

    The fused attention kernels and the fused recurrent layers of oneDNN and cuDNN
    have a first derivative only; the second one of the fused weight norm is wrong, and
    forward mode of group norm fails for channels-last images (torch 2.13). What reverse
    mode leaves out by decree, forward mode does not know of: it is cut off for both.
    One thread at a time, since the switches are global.

    Parameters
    ----------
    module : torch.nn.Module
        Decides whether the recurrent kernels have to be switched off.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_SWITCHES)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_PlainKernels())
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            stack.enter_context(_switched_off(torch.backends.mkldnn))
            stack.enter_context(_switched_off(torch.backends.cudnn))
        yield


class _PlainKernels(TorchFunctionMode):
    """Other calls in place of those whose derivatives fail or differ between modes."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._weight_norm:
            v, g, dim = args  # w = g v/‖v‖, spelled out
            return v * (g / torch.norm_except_dim(v, 2, dim))
        if func is torch.view_as_complex:  # fails for a slope at an odd place
            return torch.complex(args[0][..., 0], args[0][..., 1])
        if func is torch.view_as_real:
            return torch.stack([args[0].real, args[0].imag], -1)
        if func is F.instance_norm:
            # Whose second derivative is wrong for one channels-last example.
            if not kwargs["use_input_stats"]:
                return _by_running_statistics(args[0], **kwargs)
            if kwargs["running_mean"] is None:
                func, args = F.group_norm, (args[0], args[0].shape[1])
                kwargs = {name: kwargs[name] for name in ("weight", "bias", "eps")}
        if func in (F.group_norm, torch.group_norm):
            args = (args[0].contiguous(), *args[1:])
        elif func is F.embedding:
            args = (args[0], _without_padding_row(*args, **kwargs), *args[2:])
            kwargs = {name: kwargs[name] for name in kwargs if name != "weight"}
        result = func(*args, **kwargs)
        # Forward mode would see through torch.no_grad().
        return result if torch.is_grad_enabled() else _detach(result)


def _by_running_statistics(
    input: Tensor,
    *,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    **_: Any,
) -> Tensor:
    """Return an instance norm in eval mode, spelled out."""
    shape = (-1, *(1 for _ in input.shape[2:]))
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    output = (input - running_mean.view(shape)) * scale.view(shape)
    return output if bias is None else output + bias.view(shape)


def _without_padding_row(
    _indices: Tensor, weight: Tensor, padding_idx: int | None = None, *_: Any, **__: Any
) -> Tensor:
    """Return an embedding's weight whose padding row is a constant."""
    if padding_idx is None:
        return weight
    rows = torch.arange(len(weight), device=weight.device)
    is_padding = (rows == padding_idx % len(weight)).unsqueeze(1)
    return torch.where(is_padding, weight.detach(), weight)


def _detach(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.detach()
    if type(result) in (tuple, list):
        return type(result)(map(_detach, result))
    return result


@contextlib.contextmanager
def _switched_off(backend: Any) -> Iterator[None]:
    # Its own ``flags`` sets the other flags too, and warns of one without a GPU.
    before = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = before
