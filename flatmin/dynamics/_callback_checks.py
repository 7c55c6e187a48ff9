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
    MlflowLogger,
    NeptuneLogger,
    SacredLogger,
    TensorBoard,
    Unfreezer,
)

__all__ = ["check_callbacks"]

_BATCH_EVENTS = ("on_batch_begin", "on_batch_end", "on_grad_computed")
# These do nothing there but for what happens in an epoch: the first fills a cache that
# is not used here, the second notes that a batch has come.
_HARMLESS = (EpochScoring.on_batch_end, TensorBoard.on_batch_end)
_LOGGERS = (MlflowLogger, NeptuneLogger, SacredLogger)


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
        _check_kind(kind)
        if _works_on_batches(callback, kind):
            raise ValueError(
                f"The callback {kind.__name__} works on batches, and there are none "
                "here: a skorch epoch is a block of record_every iterations. Use a "
                "callback with on_epoch_end, or LRScheduler(step_every='epoch'). A "
                "callback of your own that needs no batches says so by an attribute "
                "works_on_batches = False."
            )


def _check_kind(kind: type[Callback]) -> None:
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


def _works_on_batches(callback: Any, kind: type[Callback]) -> bool:
    """Return whether a callback, or one of a class by default, waits for batches."""
    own = [
        event
        for event in _BATCH_EVENTS
        if getattr(kind, event) not in (getattr(Callback, event), *_HARMLESS)
    ]
    if not own:
        return False
    if issubclass(kind, LRScheduler):
        return bool(getattr(callback, "step_every", "epoch") == "batch")
    if issubclass(kind, _LOGGERS):
        return bool(getattr(callback, "log_on_batch_end", False))
    return bool(getattr(callback, "works_on_batches", True))
