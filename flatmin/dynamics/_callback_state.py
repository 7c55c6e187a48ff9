"""What skorch's callbacks remember, as plain values."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from skorch.callbacks import Callback

from flatmin._utils.plain import as_plain

__all__ = ["callback_settings", "load_callbacks", "store_callbacks"]


def callback_settings(callback: Any) -> dict[str, Any]:
    """Return what a callback was made with, and not what it has learnt since.

    Parameters
    ----------
    callback : skorch callback

    Returns
    -------
    dict of str to object
    """
    parameters = inspect.signature(type(callback)).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {
        name: value
        for name, value in vars(callback).items()
        if name in parameters or (takes_any and not name.endswith("_"))
    }


def store_callbacks(callbacks: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return what callbacks remember, as copies.

    Parameters
    ----------
    callbacks : iterable of (name, callback) pairs
        Initialised.

    Returns
    -------
    dict of str to dict
        For :func:`load_callbacks`.

    Raises
    ------
    TypeError
        If one remembers something else than plain values.
    """
    stored = {name: _store(callback) for name, callback in callbacks}
    return copy.deepcopy(stored)


def load_callbacks(
    callbacks: Iterable[tuple[str, Any]], stored: Mapping[str, Any], *, begun: bool
) -> None:
    """Let callbacks remember what :func:`store_callbacks` stored of them.

    Parameters
    ----------
    callbacks : iterable of (name, callback) pairs
        Initialised.
    stored : mapping
    begun : bool
        Whether they have been told that the training begins, and so have made what
        keeps a state of its own, such as a schedule.

    Raises
    ------
    ValueError
        If one has made such a thing only later.
    """
    for name, callback in callbacks:
        _load(callback, stored[name], begun)


def _store(callback: Any) -> dict[str, Any]:
    title = type(callback).__name__
    if _keeps_itself(callback):
        return {"state": _plain(callback.state_dict(), f"state_dict() of {title}")}
    settings = callback_settings(callback)
    values, parts = {}, {}
    for name, value in vars(callback).items():
        if _keeps_itself(value) or isinstance(value, Callback):
            parts[name] = _store(value)
            continue
        try:
            values[name] = _plain(value, f"{name} of {title}")
        except TypeError:
            if not (name in settings or callable(value)):  # these do not change
                raise
    return {"values": values, "parts": parts}


def _load(callback: Any, stored: Mapping[str, Any], begun: bool) -> None:
    if "state" in stored:
        callback.load_state_dict(stored["state"])
        return
    for name, value in stored["values"].items():
        setattr(callback, name, value)
    for name, state in stored["parts"].items():
        part = getattr(callback, name, None)
        if part is not None:
            _load(part, state, begun)
        elif begun:
            raise ValueError(
                f"The callback {type(callback).__name__} has no {name} when a training "
                "begins, so a checkpoint cannot bring it back. Give the callback the "
                "methods state_dict and load_state_dict, or begin in another "
                "checkpoint_dir without it."
            )


def _keeps_itself(value: Any) -> bool:
    methods = ("state_dict", "load_state_dict")
    known = all(callable(getattr(value, name, None)) for name in methods)
    return known and not isinstance(value, type)


def _plain(value: Any, title: str) -> Any:
    try:
        return as_plain(value, title)
    except TypeError as error:
        raise TypeError(
            f"A checkpoint cannot hold what a callback remembers: {error} Give the "
            "callback the methods state_dict and load_state_dict, or leave "
            "checkpoint_dir at None."
        ) from error
