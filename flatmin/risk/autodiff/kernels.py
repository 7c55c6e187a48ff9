"""Which of PyTorch's kernels can be differentiated twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from flatmin._utils.locks import Lock
from flatmin.risk.autodiff.spelled_out import SPELLED_OUT

__all__ = ["twice_differentiable"]

# Forward mode is inside of this lock too: PyTorch 2.13 keeps one level of it for all
# threads, and fails where two threads are in it.
_SWITCHES = Lock()


@contextlib.contextmanager
def twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Choose kernels that have a second derivative.

    The fused attention kernels, and the fused recurrent layers of oneDNN and cuDNN,
    have a first derivative only (torch 2.13). Functions whose derivatives are missing
    or wrong are computed by other functions. ``torch.no_grad()`` in a module cuts a
    constant off in reverse mode only; here it is cut off in forward mode too. The
    switches are global, so one thread at a time is inside.

    Parameters
    ----------
    module : torch.nn.Module
        Decides whether the recurrent kernels have to be switched off.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_SWITCHES)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_DifferentiableKernels())
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            stack.enter_context(_switched_off(torch.backends.mkldnn))
            stack.enter_context(_switched_off(torch.backends.cudnn))
        yield


class _DifferentiableKernels(TorchFunctionMode):
    """Other calls in place of those whose derivatives fail or differ between modes."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = SPELLED_OUT.get(func, func)(*args, **(kwargs or {}))
        # Forward mode would see through torch.no_grad().
        return result if torch.is_grad_enabled() else _detach(result)


def _detach(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.detach()
    if type(result) in (tuple, list):
        return type(result)(map(_detach, result))
    return result


@contextlib.contextmanager
def _switched_off(backend: Any) -> Iterator[None]:
    # Its own ``flags`` sets the other flags too, and warns of one without a GPU. The
    # bracket is for callers who have frozen the flags.
    bracket = getattr(torch.backends, "__allow_nonbracketed_mutation")
    before = backend.enabled
    with bracket():
        backend.enabled = False
    try:
        yield
    finally:
        with bracket():
            backend.enabled = before
