"""Which of skorch's callbacks can do their work where an epoch is a block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from skorch.callbacks import (
    Callback,
    EpochScoring,
    Freezer,
    InputShapeSetter,
    LRScheduler,
    Unfreezer,
)

__all__ = ["check_callbacks"]

_BATCH_EVENTS = ("on_batch_begin", "on_batch_end", "on_grad_computed")


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Refuse callbacks that would do nothing, or would do harm, without a word.

    Parameters
    ----------
    callbacks : iterable of skorch callbacks or (name, callback) pairs

    Raises
    ------
    TypeError
        If one is no skorch callback.
    ValueError
        If one works on batches or freezes parameters.
    """
    for item in callbacks:
        callback = item[1] if isinstance(item, tuple) else item
        if callback is None:
            continue  # skorch's way to leave one out
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, Callback):
            raise TypeError(
                "callbacks must be skorch callbacks or pairs of a name and a skorch "
                f"callback. Got {item!r}."
            )
        _check_callback(kind, getattr(callback, "step_every", "epoch"))


def _check_callback(kind: type[Callback], step_every: str) -> None:
    if issubclass(kind, Freezer | Unfreezer):
        raise ValueError(
            f"The callback {kind.__name__} cannot change which parameters θ holds. "
            "Pass a module whose frozen parameters have requires_grad=False."
        )
    if issubclass(kind, InputShapeSetter):
        raise ValueError(
            "The callback InputShapeSetter would build the module anew behind θ. Give "
            "the module its input size by module_params."
        )
    if issubclass(kind, EpochScoring):
        return  # its batch event fills a cache that is not used here
    if issubclass(kind, LRScheduler):
        works_on_batches = step_every == "batch"
    else:
        works_on_batches = any(
            getattr(kind, event) is not getattr(Callback, event)
            for event in _BATCH_EVENTS
        )
    if works_on_batches:
        raise ValueError(
            f"The callback {kind.__name__} works on batches, and there are none here: "
            "a skorch epoch is a block of record_every iterations. Use a callback with "
            "on_epoch_end, or LRScheduler(step_every='epoch')."
        )
