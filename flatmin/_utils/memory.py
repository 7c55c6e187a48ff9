"""How much memory is free, and what of it something would take."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_memory", "in_gigabytes"]

_LINUX = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Return the bytes that new arrays may take on this machine without swapping.

    Returns
    -------
    int or None
        None where the system does not tell.
    """
    try:
        for line in _LINUX.read_text().splitlines():
            name, _, amount = line.partition(":")
            if name == "MemAvailable":
                return int(amount.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:  # all that the machine has: an upper bound, where no better one is known
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def in_gigabytes(n_bytes: int) -> str:
    """Write a number of bytes for a message.

    Parameters
    ----------
    n_bytes : int

    Returns
    -------
    str

    Examples
    --------
    >>> in_gigabytes(1_500_000_000)
    '1.5 GB'
    """
    return f"{n_bytes / 1e9:.3g} GB"
