"""All digits of float32 for what is measured on a GPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

from flatmin.risk.surroundings import undisturbed

__all__ = ["full_float32", "in_full_float32"]

Method = TypeVar("Method", bound=Callable[..., Any])


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from rounding what goes into a convolution to TF32.

    That is PyTorch's default on a GPU and leaves three digits: a product with H is then
    not quite linear, and eigenpairs do not converge to 1e-4. The gradients that train
    keep the default, which is faster. The switch is global, so other threads see it.

    Parameters
    ----------
    device : torch.device
        Nothing is done but on CUDA.
    """
    backend = torch.backends.cudnn
    rounds = False
    if device.type == "cuda":
        # Raises where somebody has chosen by PyTorch's newer switches: leave those.
        with contextlib.suppress(RuntimeError):
            rounds = backend.allow_tf32
    # The bracket is for callers who have frozen the flags.
    bracket = getattr(torch.backends, "__allow_nonbracketed_mutation")
    if rounds:
        with bracket():
            backend.allow_tf32 = False
    try:
        yield
    finally:
        if rounds:
            with bracket():
                backend.allow_tf32 = True


def in_full_float32(method: Method) -> Method:
    """Run a method in :func:`full_float32`, undisturbed by the caller's switches.

    Parameters
    ----------
    method : callable
        Of an object that has a ``device``.

    Returns
    -------
    callable
    """

    @functools.wraps(method)
    @undisturbed
    def exact(self: Any, *args: Any, **kwargs: Any) -> Any:
        with full_float32(self.device):
            return method(self, *args, **kwargs)

    return cast(Method, exact)
