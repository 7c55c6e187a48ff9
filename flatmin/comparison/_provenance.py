"""What a stored result has to say about where it comes from."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from flatmin._utils.messages import shown
from flatmin._utils.versions import list_versions
from flatmin.comparison._revision import describe_command, find_revision

__all__ = ["describe", "describe_settings", "provenance"]

# What no result depends on.
_WITHOUT_EFFECT = ("checkpoint_dir",)


def provenance(device: torch.device) -> dict[str, Any]:
    """Return revision, command, versions and machine.

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
        "revision": find_revision(),
        "command": describe_command(),
        "versions": list_versions(),
        "machine": {
            # Families: a kernel build or a host tells of people, not of results.
            "platform": platform.system(),
            "processor": platform.machine(),
            "n_cores": os.cpu_count(),
            "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        },
    }


def describe(value: Any) -> Any:
    """Describe a setting by what JSON can hold.

    Parameters
    ----------
    value : object
        Functions and classes become their names, what else there is its ``repr``,
        without addresses, which differ from run to run.

    Returns
    -------
    object
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", shown(value))


def describe_settings(estimator: Any) -> dict[str, Any]:
    """Describe the class and the settings of an estimator that results depend on.

    Parameters
    ----------
    estimator : estimator

    Returns
    -------
    dict
        ``memory`` is None: it may name a folder of the machine.
    """
    settings = describe(estimator.get_params(deep=False)) | {"memory": None}
    kept = {k: v for k, v in settings.items() if k not in _WITHOUT_EFFECT}
    return {"class": type(estimator).__name__, **kept}
