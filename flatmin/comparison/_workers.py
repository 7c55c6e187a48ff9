"""Tasks in joblib's workers, which end with the process that they work for."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from joblib import Parallel, delayed

__all__ = ["work"]

_WATCH = "flatmin: ends an orphan"


def work(
    function: Callable[..., Any], tasks: list[tuple[Any, ...]], n_jobs: int | None
) -> Iterator[Any]:
    """Call a function for each task, and yield results as they come.

    Parameters
    ----------
    function : callable
    tasks : list of tuple
        Its arguments.
    n_jobs : int or None

    Yields
    ------
    object
    """
    calls = [delayed(_call)(os.getpid(), function, task) for task in tasks]
    yield from Parallel(n_jobs=n_jobs, return_as="generator_unordered")(calls)


def _call(caller: int, function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    parent = multiprocessing.parent_process()
    watched = any(thread.name == _WATCH for thread in threading.enumerate())
    # Windows does not tell that a parent has gone, nor is a fork server's child told.
    tells = os.name != "nt" and os.getppid() == caller
    if parent is not None and parent.pid == caller and tells and not watched:
        threading.Thread(
            target=_end_with, args=(caller,), name=_WATCH, daemon=True
        ).start()
    return function(*task)


def _end_with(caller: int) -> None:
    """Wait for the caller to be gone, and go too.

    Workers outlive a caller that is killed: they would end their tasks, begin those
    that wait for them, and write into folders of the comparison that goes on.
    """
    while os.getppid() == caller:
        time.sleep(0.1)
    os._exit(1)
