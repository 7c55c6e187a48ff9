"""Tasks in joblib's workers: they end with their caller, and may die on their own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky.backend.reduction import (  # type: ignore[import-untyped]
    dumps,
)

from flatmin._utils.messages import message

__all__ = ["able_to_travel", "work"]

_WATCH = "flatmin: ends an orphan"


def work(
    function: Callable[..., Any],
    tasks: list[Any],
    n_jobs: int | None,
    lost: Callable[[Any, Exception], Any] | None = None,
) -> Iterator[Any]:
    """Call a function for each task, and yield results as they come.

    A worker process that is killed, as by a machine that has run out of memory, takes
    the pool with it. The tasks that may have been its are then run again, beside fewer
    others and in the end alone, and the rest after them.

    Parameters
    ----------
    function : callable
    tasks : list
        Its arguments, one a call.
    n_jobs : int or None
    lost : callable, default=None
        Returns what stands for the result of a task whose worker died while it was
        alone; None raises the error.

    Yields
    ------
    object

    Raises
    ------
    BrokenProcessPool
        If a worker dies alone, and there is no ``lost``.
    """
    groups = [tasks] if tasks else []
    while groups:
        group = groups.pop()
        left = dict(enumerate(group))
        try:
            for i, result in _parallel(function, group, n_jobs):
                del left[i]
                yield result
        except BrokenProcessPool as error:
            if len(group) == 1:
                if lost is None:
                    raise
                yield lost(group[0], error)
                continue
            # Tasks are begun in their order, so it was one of the first that are left.
            rest = list(left.values())
            n_begun = min(effective_n_jobs(n_jobs), len(rest))  # type: ignore[arg-type]
            half = (n_begun + 1) // 2
            parts = [rest[:half], rest[half:n_begun], rest[n_begun:]]
            groups += [part for part in reversed(parts) if part]


def _parallel(
    function: Callable[..., Any], tasks: list[Any], n_jobs: int | None
) -> Iterator[tuple[int, Any]]:
    calls = [
        delayed(_call)(os.getpid(), function, i, task) for i, task in enumerate(tasks)
    ]
    # In a batch of several, results would wait for a task whose worker dies.
    yield from Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)(
        calls
    )


def _call(
    caller: int, function: Callable[..., Any], i: int, task: Any
) -> tuple[int, Any]:
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != caller:
        return i, function(task)
    if _is_gone(parent):
        os._exit(1)
    if all(thread.name != _WATCH for thread in threading.enumerate()):
        threading.Thread(
            target=_end_with, args=(parent,), name=_WATCH, daemon=True
        ).start()
    try:
        return i, function(task)
    except Exception as error:
        raise able_to_travel(error) from None


def _end_with(parent: Any) -> None:
    """Wait for the caller to be gone, and go too.

    Workers outlive a caller that is killed: they would end their tasks, begin those
    that wait for them, and write into folders of the comparison that goes on.
    """
    while not _is_gone(parent):
        time.sleep(0.1)
    os._exit(1)


def _is_gone(parent: Any) -> bool:
    try:
        return not parent.is_alive()
    except (TypeError, ValueError):
        # On POSIX loky gives its workers, its own children, nothing to know it by.
        return bool(os.getppid() != parent.pid)


def able_to_travel(error: Exception) -> Exception:
    """Return an exception that the caller can unpickle, this one if it can.

    Parameters
    ----------
    error : Exception

    Returns
    -------
    Exception
    """
    try:
        pickle.loads(dumps(error))
        return error
    except Exception:
        kinds = (kind for kind in (TypeError, ValueError) if isinstance(error, kind))
        kind = next(kinds, RuntimeError)
        return kind(f"{type(error).__name__}: {message(error)}")
