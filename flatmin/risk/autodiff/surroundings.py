"""What a caller has switched on in PyTorch, and what a risk must not feel of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from flatmin._utils.locks import Lock
from flatmin.risk.autodiff.isolation import check_autograd

__all__ = [
    "SharedSwitch",
    "alone",
    "as_differentiated",
    "attends",
    "modes_put_back",
    "one_attention",
    "undisturbed",
]

Method = TypeVar("Method", bound=Callable[..., Any])


def modes_put_back(function: Method) -> Method:
    """Let a function that raises leave PyTorch's modes as it found them.

    An interrupt within the ``__exit__`` of a mode leaves the mode on: gradients stay
    off, or all later calls of the thread go through a watch that is over.

    Parameters
    ----------
    function : callable

    Returns
    -------
    callable
    """

    @functools.wraps(function)
    def tidy(*args: Any, **kwargs: Any) -> Any:
        has_gradients = torch.is_grad_enabled()
        n_functions = torch._C._len_torch_function_stack()
        n_dispatches = torch._C._len_torch_dispatch_stack()
        try:
            return function(*args, **kwargs)
        except BaseException:
            while torch._C._len_torch_function_stack() > n_functions:
                torch._C._pop_torch_function_stack()
            while torch._C._len_torch_dispatch_stack() > n_dispatches:
                torch._C._pop_torch_dispatch_stack(None)
            torch.set_grad_enabled(has_gradients)
            raise

    return cast(Method, tidy)


def undisturbed(method: Method) -> Method:
    """Run a method of a risk as if the caller had switched nothing on.

    What it switches on itself is off again if it raises (:func:`modes_put_back`).
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
    @modes_put_back
    def undistracted(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_autograd()
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

    return cast(Method, undistracted)


def alone(method: Method) -> Method:
    """Run a method undisturbed, and in one thread at a time.

    θ, and more, is bound in a network that all methods share. Every call binds its own
    and keeps the lock until it has its number.

    Parameters
    ----------
    method : callable
        Of an object whose ``_lock`` is that of the network.

    Returns
    -------
    callable
    """
    quiet = undisturbed(method)

    @functools.wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return quiet(self, *args, **kwargs)

    return cast(Method, locked)


_CASTING = ("cpu", "cuda")


def _own(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value


class SharedSwitch:
    """A switch of PyTorch's that all threads share, off while one needs it off.

    Parameters
    ----------
    is_on : callable
    switch : callable
        Takes whether it is to be on.
    """

    def __init__(
        self, is_on: Callable[[], bool], switch: Callable[[bool], object]
    ) -> None:
        self._is_on = is_on
        self._switch = switch
        self._lock = Lock()
        self._users = 0
        self._before = True

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Switch it off; the last one who leaves puts back what the first one found."""
        with self._lock:
            if self._users == 0:
                self._before = self._is_on()
                if self._before:
                    self._switch(False)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._before:
                    self._switch(True)


_FAST_ATTENTION = SharedSwitch(
    torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled
)


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
    with _FAST_ATTENTION.off():
        yield


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
