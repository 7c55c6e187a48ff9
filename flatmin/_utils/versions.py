"""The versions that a result, or a bug report, depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

__all__ = ["list_versions", "show_versions"]

_PACKAGES = ("flatmin", "torch", "numpy", "scipy", "scikit-learn", "skorch", "joblib")


def list_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute.

    Returns
    -------
    dict of str to str
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that is not installed
            found[package] = "not installed"
    found["torch"] = str(torch.__version__)  # with the build, as +cu130
    return found


def show_versions() -> None:
    """Print what a bug report should hold: versions, threads and devices.

    Examples
    --------
    >>> show_versions()
    python: ...
    flatmin: ...
    """
    for name, value in list_versions().items():
        print(f"{name}: {value}")  # noqa: T201 - what it is for
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"threads: {torch.get_num_threads()}")  # noqa: T201
    print(f"CUDA device: {cuda}")  # noqa: T201
