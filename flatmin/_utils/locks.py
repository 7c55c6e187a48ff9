"""Locks for what several threads share, and what a fork leaves of them."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ["Lock", "one_at_a_time"]

Method = TypeVar("Method", bound=Callable[..., Any])

_LOCKS: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """A re-entrant lock, of which every copy and every pickle is another, free one.

    A process that is forked while another thread holds it would wait for ever: that
    thread is not there. So the child gets a new lock, and an error when it takes it if
    something was left half-way.

    Parameters
    ----------
    guarded : str, default=None
        What is left half-way, for the message. None where nothing is.
    """

    def __init__(self, guarded: str | None = None) -> None:
        self._guarded = guarded
        self._lock = threading.RLock()
        self._is_cut = False
        _LOCKS.add(self)

    def __enter__(self) -> None:
        """Wait for it.

        Raises
        ------
        RuntimeError
            In a process that was forked in the middle of what another thread did.
        """
        if self._is_cut:
            raise RuntimeError(
                f"{self._guarded} was at work in another thread when this process was "
                "forked, and is left half-way here. Make it anew in this process, or "
                "fork when no thread is at work."
            )
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        """Let go of it."""
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return Lock, (self._guarded,)

    def _after_fork(self) -> None:
        # Only the thread that forked lives on in the child. A lock still works if it
        # was free, or was held by that thread.
        if self._lock.acquire(blocking=False):
            self._lock.release()
            return
        self._lock = threading.RLock()
        self._is_cut = self._guarded is not None


def _after_fork() -> None:
    for lock in _LOCKS:
        lock._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def one_at_a_time(method: Method) -> Method:
    """Let one thread at a time into the methods of an object that are so decorated.

    Parameters
    ----------
    method : callable

    Returns
    -------
    callable
    """

    @functools.wraps(method)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The lock is made here, because scikit-learn allows __init__ to set parameters
        # only.
        with vars(self).get("_lock") or vars(self).setdefault("_lock", Lock()):
            return method(self, *args, **kwargs)

    return cast(Method, alone)
