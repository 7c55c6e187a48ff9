"""Transforms of PyTorch, without their remarks and without what a failure leaves."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from flatmin._utils.quiet import ignored

__all__ = ["check_autograd", "isolated", "vectorize"]

T = TypeVar("T")

_AUTOGRAD = (torch._C.DispatchKey.AutogradCPU, torch._C.DispatchKey.AutogradCUDA)


def check_autograd() -> None:
    """Raise RuntimeError if this thread has lost autograd: gradients would be zero."""
    if any(map(torch._C._dispatch_tls_is_dispatch_key_excluded, _AUTOGRAD)):
        raise RuntimeError(
            "Derivatives need autograd, which is switched off in this thread: code "
            "that ran before has left PyTorch's dispatcher in that state. Start a "
            "new thread or process."
        )


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


def isolated(function: Callable[[], T]) -> T:
    """Call a function, and put back the state of PyTorch's dispatcher if it raises.

    A transform that fails inside a kernel (``make_fx`` of ``quantile``, torch 2.13) can
    leave this thread without autograd: every later gradient is then missing, and sums
    of squares are 0. The dispatch keys and the stack of transforms are put back for any
    exception. It is raised without its traceback: the frames in it hold guards of
    PyTorch that would undo the repair when they are freed. The traceback as text is a
    note of the exception, and ``raised_in`` the file of its last line.

    Parameters
    ----------
    function : callable
        Takes no arguments.

    Returns
    -------
    object
        What the function returns.
    """
    functorch = torch._C._functorch
    depth = functorch.get_dynamic_layer_stack_depth()
    keys = (
        torch._C._dispatch_tls_local_include_set(),
        torch._C._dispatch_tls_local_exclude_set(),
    )
    with torch._C._ForceDispatchKeyGuard(*keys):
        try:
            return function()
        except BaseException as error:
            failure = _without_frames(error)
            if functorch.get_dynamic_layer_stack_depth() > depth:
                functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
    try:
        raise failure
    finally:
        # Its traceback holds this frame, so the variable would make a circle.
        del failure


def _without_frames(error: BaseException) -> BaseException:
    """Turn tracebacks of an exception, and of those behind it, into a note."""
    text = "".join(traceback.format_exception(error))
    frames = traceback.extract_tb(error.__traceback__)
    # A mode of flatmin may have called the function for the module. The line that is
    # named is then the module's, not the mode's.
    while len(frames) > 1 and frames[-1].name == "__torch_function__":
        frames.pop()
    error.raised_in = frames[-1].filename  # type: ignore[attr-defined]
    found: BaseException | None = error
    while found is not None:
        behind = found.__context__ or found.__cause__
        found.__traceback__ = found.__context__ = found.__cause__ = None
        found = behind
    error.add_note(text)
    return error
