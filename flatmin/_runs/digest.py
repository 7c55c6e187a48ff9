"""The hash of a description, by its values alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["hash_description"]


def hash_description(description: Any) -> str:
    """Hash a description by its values alone.

    ``joblib.hash`` also tells two equal lists from one list that stands twice, and
    depends on the version of ``pickle``.

    Parameters
    ----------
    description : object
        What :meth:`Description.of` returned, or a list of such.

    Returns
    -------
    str
    """
    found = hashlib.sha256()
    _feed(found.update, description)
    return found.hexdigest()


def _feed(update: Callable[[Any], None], part: Any) -> None:
    if isinstance(part, np.ndarray):
        update(f"array {part.dtype} {part.shape} ".encode())
        update(part.reshape(-1).view(np.uint8).data)
    elif isinstance(part, Mapping | list):
        items = sorted(part.items()) if isinstance(part, Mapping) else part
        update(f"{type(part).__name__} {len(items)} ".encode())
        for item in items:
            _feed(update, list(item) if isinstance(item, tuple) else item)
    else:
        update(f"{type(part).__name__} {part!r} ".encode(errors="backslashreplace"))
