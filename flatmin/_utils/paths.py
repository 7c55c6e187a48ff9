"""Errors about paths, before anything is written."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["check_path"]


def check_path(name: str, path: Any) -> None:
    """Raise unless a path names something; "" would be the working folder.

    Parameters
    ----------
    name : str
        Of the parameter, for the message.
    path : object

    Raises
    ------
    TypeError
        If it is no path of text.
    ValueError
        If it is empty, or no file can have that name.

    Examples
    --------
    >>> check_path("checkpoint_dir", "")
    Traceback (most recent call last):
    ValueError: checkpoint_dir must name a folder or a file. Got ''; '.' is ...
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str or a path of text. Got {path!r}.")
    if not text.strip():
        raise ValueError(
            f"{name} must name a folder or a file. Got {text!r}; '.' is the working "
            "folder."
        )
    try:
        usable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise ValueError(
            f"{name} must be a name that a file can have. Got {text!r}, with a "
            "character that cannot be written."
        )
