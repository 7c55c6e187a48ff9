"""What a risk is asked about: directions and indices, checked before any pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["as_direction", "as_indices"]


def as_direction(v: Any, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a direction or cotangent in the risk's dtype, on its device.

    Parameters
    ----------
    v : Tensor
    name : str
        For messages.
    shape : tuple of int
        What it must have: nothing is broadcast.
    like : Tensor
        Of the dtype and on the device that are wanted.

    Returns
    -------
    Tensor

    Raises
    ------
    TypeError
        If it is no tensor of real numbers.
    ValueError
        If its shape does not fit.
    """
    if not isinstance(v, Tensor) or v.is_complex():
        got = v.dtype if isinstance(v, Tensor) else type(v).__name__
        raise TypeError(f"{name} must be a Tensor of real numbers. Got {got}.")
    if v.shape != shape:
        raise ValueError(f"{name} must have shape {shape}. Got {tuple(v.shape)}.")
    return v.to(like)


def as_indices(indices: Any, name: str, n_axes: int, device: torch.device) -> Tensor:
    """Return indices of examples as a tensor of int64.

    Parameters
    ----------
    indices : array-like or Tensor of integers
    name : str
        For messages.
    n_axes : int
        How many axes it must have.
    device : torch.device
        Where they go.

    Returns
    -------
    Tensor

    Raises
    ------
    TypeError
        If these are no integers. PyTorch would take bool and uint8 for a mask.
    ValueError
        If there are none, or the number of axes does not fit.
    """
    found: Tensor = indices  # as_tensor would move it to a default device
    if not isinstance(indices, Tensor):
        try:
            found = torch.as_tensor(indices, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be integers. Got {indices!r}.") from error
    if found.ndim != n_axes:
        axes = "one axis" if n_axes == 1 else f"{n_axes} axes"
        raise ValueError(f"{name} must have {axes}. Got shape {tuple(found.shape)}.")
    if found.numel() == 0:
        raise ValueError(f"{name} must name at least one example. Got none.")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(
            f"{name} must be integers. Got {found.dtype}; of a mask take "
            "mask.nonzero().flatten()."
        )
    return found.to(device, torch.long)
