"""What a caller has switched on in PyTorch, and what a risk must not feel of it."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["as_differentiated", "attends", "one_attention", "undisturbed"]

Method = TypeVar("Method", bound=Callable[..., Any])

_AUTOGRAD = (torch._C.DispatchKey.AutogradCPU, torch._C.DispatchKey.AutogradCUDA)


def undisturbed(method: Method) -> Method:
    """Run a method of a risk as if the caller had switched nothing on.

    Inference mode would forbid gradients, and autocast would round what the risk
    computes to another dtype. Tensors that were made in inference mode are copied,
    since autograd does not take them.

    Parameters
    ----------
    method : callable

    Returns
    -------
    callable

    Raises
    ------
    RuntimeError
        If this thread has lost autograd: gradients would be zero without a word.
    """

    @functools.wraps(method)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(map(torch._C._dispatch_tls_is_dispatch_key_excluded, _AUTOGRAD)):
            raise RuntimeError(
                "Derivatives need autograd, which is switched off in this thread: code "
                "that ran before has left PyTorch's dispatcher in that state. Start a "
                "new thread or process."
            )
        args = tuple(map(_own, args))
        kwargs = {name: _own(value) for name, value in kwargs.items()}
        types = [name for name in _CASTING if torch.is_autocast_enabled(name)]
        if not types and not torch.is_inference_mode_enabled():
            return method(self, *args, **kwargs)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for name in types:
                stack.enter_context(torch.autocast(name, enabled=False))
            return method(self, *map(_own, args), **kwargs)

    return cast(Method, alone)


_CASTING = ("cpu", "cuda")


def _own(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value


class _FastAttention:
    """PyTorch's switch for the fused transformer, shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = True

    def switch_off(self) -> None:
        """Switch it off until as many users have put it back."""
        with self._lock:
            if self._users == 0:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._users += 1

    def put_back(self) -> None:
        """Restore it if nobody else needs it off."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                torch.backends.mha.set_fastpath_enabled(self._before)


_FAST_ATTENTION = _FastAttention()


def attends(module: nn.Module) -> bool:
    """Return whether a module has one of PyTorch's own transformer layers."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return any(isinstance(part, kinds) for part in module.modules())


@contextlib.contextmanager
def one_attention() -> Iterator[None]:
    """Keep PyTorch's transformer to the function that it differentiates.

    Without gradients ``nn.TransformerEncoder`` takes a fused path that fills padded
    positions with zeros: the value would be of another function than the gradient.
    """
    _FAST_ATTENTION.switch_off()
    try:
        yield
    finally:
        _FAST_ATTENTION.put_back()


@contextlib.contextmanager
def as_differentiated(module: nn.Module, *, keeps_graph: bool) -> Iterator[None]:
    """Run a module for its outputs as the function that a risk differentiates.

    Parameters
    ----------
    module : torch.nn.Module
    keeps_graph : bool
        See :attr:`flatmin.EmpiricalRisk.keeps_graph`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(keeps_graph))
        if attends(module):
            stack.enter_context(one_attention())
        yield
