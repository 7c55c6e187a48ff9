"""What a callback may monitor: the columns of the net's history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from skorch.callbacks import EpochTimer

from flatmin._utils.names import check_known

__all__ = ["check_monitors"]

# What skorch, and the net, have in the history of a block when callbacks see its end.
_OF_SKORCH = {"epoch", "train_batch_count", "iteration", "train_score"}
_OF_VALIDATION = {"valid_batch_count", "valid_score"}
_OF_FLATMIN = {"gradient_norm", "noise_norm"}

_AROUND_TRAINING = {"__init__", "initialize", "on_train_begin", "on_train_end"}


def check_monitors(
    callbacks: Iterable[tuple[str, Any]], metrics: Iterable[str], *, validation: bool
) -> None:
    """Refuse callbacks that wait for what the history will not have.

    Names behind a callback of the user's own are not judged, since it may write any.

    Parameters
    ----------
    callbacks : iterable of (name, callback) pairs
        Initialised, in the order in which they are called.
    metrics : iterable of str
        Names that are recorded besides flatmin's.
    validation : bool
        Whether there are validation data.

    Raises
    ------
    ValueError
        If one monitors a name that nothing before it records.
    """
    names = {*_OF_SKORCH, *_OF_FLATMIN, *metrics}
    if validation:
        names |= _OF_VALIDATION
    unknown = False
    for title, callback in callbacks:
        unknown |= _is_own(type(callback))
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor not in names:
            if monitor.startswith("valid_") and not validation:
                raise ValueError(
                    f"The callback {title} monitors {monitor!r}, and there are no "
                    "validation data. Pass X_val and y_val to fit, or monitor a column "
                    "of the training data, such as 'train_loss'."
                )
            if not unknown:
                check_known(f"name that the callback {title} monitors", monitor, names)
        names |= _records(callback, validation)


def _records(callback: Any, validation: bool) -> set[str]:
    """Return the names that one of skorch's callbacks writes at the end of a block."""
    if isinstance(callback, EpochTimer):
        return {"dur"}
    event = getattr(callback, "event_name", None)
    if isinstance(event, str):
        return {event}
    on_train = getattr(callback, "on_train", None)
    if on_train is None or not (on_train or validation):  # it scores nothing
        return set()
    name = getattr(callback, "name_", None) or callback.name
    best = set() if callback.lower_is_better is None else {f"{name}_best"}
    return {name} | best


def _is_own(kind: type) -> bool:
    """Say whether the end of a block runs code that is not skorch's."""
    return any(
        callable(held) and name not in _AROUND_TRAINING
        for part in kind.__mro__[:-1]
        if part.__module__.partition(".")[0] != "skorch"
        for name, held in vars(part).items()
    )
