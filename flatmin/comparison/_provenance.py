"""What a stored result has to say about where it comes from."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from flatmin._utils.versions import list_versions
from flatmin.comparison._revision import describe_command, find_revision

__all__ = ["origin", "place", "provenance"]


def provenance(device: torch.device) -> dict[str, Any]:
    """Return revision, command, versions and machine.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    dict
    """
    return {**origin(), **place(device)}


def origin() -> dict[str, Any]:
    """Return revision and command, which only the caller knows.

    Returns
    -------
    dict
    """
    return {"revision": find_revision(), "command": describe_command()}


def place(device: torch.device) -> dict[str, Any]:
    """Return versions and machine of the process that computes.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    dict
        Of the machine the operating system and the family of the processor; no path.
    """
    on_gpu = device.type == "cuda"
    return {
        "versions": list_versions(),
        "machine": {
            # Families: a kernel build or a host tells of people, not of results.
            "platform": platform.system(),
            "processor": platform.machine(),
            "n_cores": os.cpu_count(),
            "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        },
    }
