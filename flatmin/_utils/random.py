"""Generators of PyTorch, and the seeds that make them."""

from numbers import Integral
from typing import Any

import numpy as np
import torch

__all__ = [
    "check_rng",
    "check_seed",
    "make_generator",
    "make_seed",
]


def check_rng(rng: Any, device: torch.device, *, optional: bool = False) -> None:
    """Raise unless something is a generator on the risk's device.

    Parameters
    ----------
    rng : object
    device : torch.device
    optional : bool, default=False
        Whether None will do.

    Raises
    ------
    TypeError
        If it is no generator.
    ValueError
        If it is elsewhere.
    """
    if optional and rng is None:
        return
    if not isinstance(rng, torch.Generator):
        raise TypeError(
            f"rng must be a torch.Generator{' or None' if optional else ''}. Got "
            f"{type(rng).__name__}."
        )
    if rng.device.type != device.type:
        raise ValueError(f"rng must be on the device {device}. Got {rng.device}.")


def check_seed(seed: Any) -> None:
    """Raise unless :func:`make_generator` can make a generator of it.

    Parameters
    ----------
    seed : object

    Raises
    ------
    ValueError
        If it is no generator, no integer of 64 bits and not None.
    """
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not (
        seed is None
        or isinstance(seed, torch.Generator)
        or (whole and -(2**63) <= int(seed) < 2**63)
    ):
        raise ValueError(
            "rng (or a seed) must be a torch.Generator, an integer of 64 bits or None. "
            f"Got {seed!r}."
        )


def make_generator(
    seed: int | torch.Generator | None, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator on a device; ``None`` is truly random.

    Parameters
    ----------
    seed : int, torch.Generator or None
        A generator is handed through; ``None`` seeds from the operating system.
    device : torch.device or str, default="cpu"
        Where the numbers are drawn.

    Returns
    -------
    torch.Generator

    Raises
    ------
    ValueError
        If it is none of these, or a generator elsewhere.
    """
    check_seed(seed)
    if isinstance(seed, torch.Generator):
        wanted = torch.device(device)
        if seed.device.type != wanted.type:
            raise ValueError(f"rng must be on the device {wanted}. Got {seed.device}.")
        return seed
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(int(seed))
    return generator


def make_seed(random_state: Any) -> int:
    """Return a seed for generators; None draws a new one.

    Parameters
    ----------
    random_state : int, RandomState instance or None

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If it is none of these.
    """
    largest = np.iinfo(np.int32).max
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(largest))
    if random_state is None:  # NumPy's global state stays where it is
        return int(np.random.default_rng().integers(largest))
    if not isinstance(random_state, Integral) or isinstance(random_state, bool):
        raise TypeError(
            "random_state must be an integer, a RandomState instance or None. Got "
            f"{random_state!r}."
        )
    return int(random_state)
