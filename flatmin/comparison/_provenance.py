"""What a stored result has to say about where it comes from."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

__all__ = ["describe", "provenance"]

_PACKAGES = ("flatmin", "torch", "numpy", "scipy", "scikit-learn", "skorch", "joblib")


def provenance(device: torch.device) -> dict[str, Any]:
    """Return versions and machine.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    dict
    """
    on_gpu = device.type == "cuda"
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
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
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
