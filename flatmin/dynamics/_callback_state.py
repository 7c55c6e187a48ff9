"""What skorch's callbacks remember, as storable values.

A callback has state and settings. State is numbers, tensors and containers of them; a
checkpoint brings it back. Settings are what the callback was made with, and every text,
because a text may be the name of a file. They come from the callback that runs. A
checkpoint with other settings is refused.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from skorch.callbacks import Callback
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from flatmin._runs.fingerprint import hashes
from flatmin._runs.storable import as_storable, from_storable

__all__ = [
    "callback_settings",
    "check_unchanged",
    "fixed_values",
    "load_callbacks",
    "store_callbacks",
]

_WAY_OUT = (
    "Let the callback keep it as a number or a tensor in an attribute of its own that "
    "ends in an underscore, or give it the methods state_dict and load_state_dict."
)


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
        For :func:`load_callbacks`; without settings.

    Raises
    ------
    TypeError
        If one remembers something else than storable values.
    """
    stored = {name: _store(callback) for name, callback in callbacks}
    return copy.deepcopy(stored)


def fixed_values(callbacks: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Return hashes of the settings of callbacks.

    No checkpoint brings a setting back. So it must not change while the net trains.

    Parameters
    ----------
    callbacks : iterable of (name, callback) pairs
        Told that the training begins.

    Returns
    -------
    dict of str to str
        Where the setting is, in words, and its hash.
    """
    found: dict[str, Any] = {}
    for title, callback in callbacks:
        if _keeps_itself(callback):
            continue  # state_dict says what it keeps
        for name, value in callback_settings(callback).items():
            # What is not storable is a function or the like, which does not change.
            with suppress(TypeError):
                found[f"{name} of {title}"] = as_storable(value, name)
        stored = _store(callback)
        for at, text in _texts({**stored["values"], **stored["parts"]}):
            found[f"{at} of {title}"] = text
    return hashes(found)


def check_unchanged(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise if a setting has changed while the net trained.

    Parameters
    ----------
    before, now : mapping of str to str
        From :func:`fixed_values`.

    Raises
    ------
    TypeError
        With what it is.
    """
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise TypeError(
                f"A checkpoint cannot hold {name}, which has changed while training: "
                "what a callback is made with, and text, which may be the name of a "
                f"file, comes from the callback that runs. {_WAY_OUT}"
            )


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
        Whether they have been told that the training begins. Then they have made the
        parts that keep a state of their own, such as a schedule.

    Raises
    ------
    ValueError
        If such a part is missing, or the checkpoint has other settings.
    """
    for name, callback in callbacks:
        _load(callback, stored[name], begun)


def _store(callback: Any) -> dict[str, Any]:
    title = type(callback).__name__
    if _keeps_itself(callback):
        return {"state": _storable(callback.state_dict(), f"state_dict() of {title}")}
    settings = callback_settings(callback)
    values, parts = {}, {}
    for name, value in vars(callback).items():
        if name in settings:
            continue
        if _keeps_itself(value) or isinstance(value, Callback):
            parts[name] = _store(value)
            continue
        try:
            values[name] = _storable(value, f"{name} of {title}")
        except TypeError:
            if not callable(value):  # a function does not change
                raise
    return {"values": values, "parts": parts}


def _load(callback: Any, stored: Mapping[str, Any], begun: bool) -> None:
    if isinstance(callback, LRScheduler | ReduceLROnPlateau):
        _load_schedule(callback, stored["state"])
        return
    if "state" in stored:
        callback.load_state_dict(stored["state"])
        return
    kind, settings = type(callback), callback_settings(callback)
    for name, value in stored["values"].items():
        title, of_class = f"{name} of {kind.__name__}", getattr(kind, name, None)
        is_code = (
            callable(of_class) or hasattr(of_class, "__get__") or name.startswith("__")
        )
        if name in settings or is_code:
            raise ValueError(f"The checkpoint would set {title}, which is no state.")
        if any(True for _ in _texts(value)):
            if not (begun or hasattr(callback, name)):
                continue  # the training is over, so the callback has not made it
            _check_texts(value, getattr(callback, name, None), title)
        setattr(callback, name, value)
    for name, state in stored["parts"].items():
        part = getattr(callback, name, None)
        if _keeps_itself(part) or isinstance(part, Callback):
            _load(part, state, begun)
        elif begun:
            raise ValueError(
                f"The callback {kind.__name__} has no {name} when a training "
                "begins, so a checkpoint cannot bring it back. Give the callback the "
                "methods state_dict and load_state_dict, or begin in another "
                "checkpoint_dir without it."
            )


def _load_schedule(schedule: Any, stored: Mapping[str, Any]) -> None:
    """Give a schedule its counters; its own method would take any attribute."""
    _check_schedule(schedule, stored)
    schedule.load_state_dict(copy.deepcopy(dict(stored)))


def _check_schedule(schedule: Any, stored: Mapping[str, Any]) -> None:
    own = from_storable(as_storable(schedule.state_dict(), "the schedule"))
    # last_epoch is a parameter, but says how far the schedule has come: state.
    settings = inspect.signature(type(schedule)).parameters.keys() - {"last_epoch"}
    title = type(schedule).__name__
    for name, value in stored.items():
        if name not in own:
            raise ValueError(f"The checkpoint would set {name} of {title}.")
        if name == "_schedulers":  # of one schedule after the other
            for part, state in zip(schedule._schedulers, value, strict=True):
                _check_schedule(part, state)
            continue
        _check_texts(value, own[name], f"{name} of {title}")
        if name in settings and hashes({"": value}) != hashes({"": own[name]}):
            raise ValueError(f"The checkpoint has another {name} of {title}.")


def _check_texts(found: Any, own: Any, title: str) -> None:
    if list(_texts(found)) != list(_texts(own)):
        raise ValueError(
            f"The checkpoint has another text in {title} than the callback that runs. "
            f"A text is a setting, and not brought back. {_WAY_OUT}"
        )


def _texts(value: Any, at: str = "") -> Iterable[tuple[str, str]]:
    """Return the texts in a storable value, and where; keys of dicts are none."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{at}.{key}" if at else str(key))
    elif isinstance(value, set):
        texts = sorted(item for item in value if isinstance(item, str))
        yield from ((at, text) for text in texts)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _texts(item, f"{at}[{i}]")


def _keeps_itself(value: Any) -> bool:
    methods = ("state_dict", "load_state_dict")
    known = all(callable(getattr(value, name, None)) for name in methods)
    return known and not isinstance(value, type)


def _storable(value: Any, title: str) -> Any:
    try:
        return as_storable(value, title)
    except TypeError as error:
        raise TypeError(
            f"A checkpoint cannot hold what a callback remembers: {error} Give the "
            "callback the methods state_dict and load_state_dict, or leave "
            "checkpoint_dir at None."
        ) from error
