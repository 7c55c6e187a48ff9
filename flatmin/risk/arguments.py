"""What a risk is asked about: directions and indices, checked before any pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating, check_readable, check_tensor
from flatmin._utils.messages import first_line
from flatmin._utils.numbers import check_count

__all__ = [
    "as_direction",
    "as_indices",
    "check_no_sweeps",
    "check_point",
    "check_products",
    "check_risk",
    "within",
]


@contextmanager
def within(name: str, n_examples: int) -> Iterator[None]:
    """Name the indices in PyTorch's error about one that is no example.

    To look before would wait for a GPU in every iteration.

    Parameters
    ----------
    name : str
        For the message.
    n_examples : int
        N.

    Yields
    ------
    None

    Raises
    ------
    ValueError
        If an index is out of bounds.
    IndexError
        What else comes, as it comes.
    RuntimeError
        The same.
    """
    try:
        yield
    except (IndexError, RuntimeError) as error:
        if "out of bounds" not in str(error) and "out of range" not in str(error):
            raise
        raise ValueError(
            f"{name} must lie between 0 and {n_examples - 1}, one for each of N = "
            f"{n_examples} examples: {first_line(error)}."
        ) from error


def check_risk(risk: Any) -> None:
    """Raise unless something is a risk.

    Parameters
    ----------
    risk : object

    Raises
    ------
    TypeError
        If it has not what every risk has.
    """
    known = ("n_params", "n_examples", "dtype", "device", "value")
    if isinstance(risk, type) or not all(hasattr(risk, name) for name in known):
        raise TypeError(
            "risk must be an EmpiricalRisk, or another Risk. Got "
            f"{_title(risk)}; make one of a module: EmpiricalRisk(module, loss, X, y)."
        )


def check_products(n_products: Any) -> None:
    """Raise unless something is a number of products, or None."""
    if n_products is not None:
        check_count("n_products", n_products)


def check_no_sweeps(n_sweeps: Any) -> None:
    """Raise where sweeps are counted, and no signs are drawn."""
    if n_sweeps is not None:
        raise ValueError(
            "n_sweeps counts draws of random signs, which need a generator. Got "
            f"n_sweeps={n_sweeps!r} and rng=None; pass rng, or leave n_sweeps out."
        )


def check_point(risk: Any, theta: Any, name: str = "theta") -> None:
    """Raise unless θ is a point, or several chains, of a risk.

    Parameters
    ----------
    risk : object
    theta : object
    name : str, default="theta"
        For messages.

    Raises
    ------
    TypeError
        If the risk is none, or θ no tensor of real numbers.
    ValueError
        If θ has not D numbers.
    """
    check_risk(risk)
    check_floating(name, theta)
    if theta.ndim == 0 or theta.shape[-1] != risk.n_params:
        raise ValueError(
            f"{name} must have shape ({risk.n_params},), one number for each parameter "
            f"of the risk. Got {tuple(theta.shape)}."
        )


def _title(value: Any) -> str:
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    return f"the class {name}" if isinstance(value, type) else name


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
    check_tensor(name, v)
    if v.shape != shape:
        raise ValueError(f"{name} must have shape {shape}. Got {tuple(v.shape)}.")
    direction: Tensor = v.to(like)
    return direction


def as_indices(
    indices: Any,
    name: str,
    n_axes: int | None,
    device: torch.device,
) -> Tensor:
    """Return indices of examples as a tensor of int64.

    Parameters
    ----------
    indices : array-like or Tensor of integers
    name : str
        For messages.
    n_axes : int or None
        How many axes it must have; None is one or more.
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
    check_readable(name, indices)
    found: Tensor = indices  # as_tensor would move it to a default device
    if not isinstance(indices, Tensor):
        try:
            found = torch.as_tensor(indices, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be integers. Got {indices!r}.") from error
    if found.ndim != (max(1, found.ndim) if n_axes is None else n_axes):
        axes = "one axis" if n_axes in (1, None) else f"{n_axes} axes"
        raise ValueError(f"{name} must have {axes}. Got shape {tuple(found.shape)}.")
    if found.numel() == 0:
        raise ValueError(f"{name} must name at least one example. Got none.")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(
            f"{name} must be integers. Got {found.dtype}; of a mask take "
            "mask.nonzero().flatten()."
        )
    return found.to(device, torch.long)
