"""All digits of float32 for what is measured on a GPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

from flatmin.risk.autodiff.surroundings import SharedSwitch, alone

__all__ = ["full_float32", "in_full_float32"]

Method = TypeVar("Method", bound=Callable[..., Any])


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Keep cuDNN from rounding what goes into a convolution to TF32.

    That is PyTorch's default on a GPU and leaves three digits: a product with H is then
    not quite linear, and eigenpairs do not converge to 1e-4. The gradients that train
    keep the default, which is faster. The switch is global, so other threads see it: it
    stays off until the last one that needs it off has ended.

    Parameters
    ----------
    device : torch.device
        Nothing is done but on CUDA.
    """
    with _TF32.off() if device.type == "cuda" else contextlib.nullcontext():
        yield


def _rounds() -> bool:
    # PyTorch raises if somebody has set its newer switches. Their choice stays.
    with contextlib.suppress(RuntimeError):
        return torch.backends.cudnn.allow_tf32
    return False


def _round(on: bool) -> None:
    # PyTorch lets a program freeze the flags; in this bracket they can still be set.
    with getattr(torch.backends, "__allow_nonbracketed_mutation")():
        torch.backends.cudnn.allow_tf32 = on


_TF32 = SharedSwitch(_rounds, _round)


def in_full_float32(method: Method) -> Method:
    """Run a method in :func:`full_float32`; see :func:`alone`.

    Parameters
    ----------
    method : callable
        Of an object that has a ``device``, and ``_lock``.

    Returns
    -------
    callable
    """

    @functools.wraps(method)
    @alone
    def exact(self: Any, *args: Any, **kwargs: Any) -> Any:
        with full_float32(self.device):
            return method(self, *args, **kwargs)

    return cast(Method, exact)
