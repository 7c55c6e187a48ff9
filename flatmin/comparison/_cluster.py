"""Tasks on the Dask cluster that joblib is told to use, or in its workers here.

joblib would pickle what all tasks have in common for each of them, never hear of a task
whose worker has died too often, and lose for good the arguments that lay on a worker
that died. So tasks go to the client of joblib's back end, and not through joblib.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

from joblib import cpu_count
from joblib.externals.loky.backend.reduction import (  # type: ignore[import-untyped]
    dumps,
    loads,
)
from joblib.parallel import get_active_backend

from flatmin.comparison import _workers

__all__ = ["fewest_cores", "is_cluster", "work"]


def is_cluster() -> bool:
    """Say whether ``joblib.parallel_config`` has chosen a Dask cluster."""
    # By its name: joblib's own file of it imports the whole of Dask.
    return type(_backend()).__name__ == "DaskDistributedBackend"


def _backend() -> Any:
    return get_active_backend()[0]


def fewest_cores() -> int:
    """Return the fewest cores that a worker of the cluster has for each unit."""
    client = _backend().client
    cores = client.run(cpu_count)
    n_threads = client.nthreads(list(cores))
    return max(1, min(cores[name] // n for name, n in n_threads.items()))


def work(
    function: Callable[..., Any],
    tasks: list[Any],
    n_jobs: int | None,
    lost: Callable[[Any, Exception], Any] | None = None,
    *,
    common: str,
) -> Iterator[Any]:
    """Call a function for each task, and yield results as they come.

    Parameters
    ----------
    function : callable
    tasks : list of dataclass
        Its arguments, one a call.
    n_jobs : int or None
        A cluster uses all its threads instead.
    lost : callable, default=None
        As for :func:`flatmin.comparison._workers.work`.
    common : str
        A field in which all tasks hold one object. A cluster is given it once.

    Yields
    ------
    object
    """
    if is_cluster():
        backend = _backend()
        # Where this is itself a task of the cluster, another one takes its thread.
        with backend.retrieval_context():
            yield from _work_on(backend, function, tasks, lost, common)
    else:
        yield from _workers.work(function, tasks, n_jobs, lost)


def _work_on(
    backend: Any,
    function: Callable[..., Any],
    tasks: list[Any],
    lost: Callable[[Any, Exception], Any] | None,
    common: str,
) -> Iterator[Any]:
    from distributed import KilledWorker, as_completed

    if not tasks:
        return
    groups = deque([tasks])
    shared = _submit(backend, common, loads, dumps(getattr(tasks[0], common)))
    while groups:
        group = groups.popleft()
        left = {}
        for task in group:
            pickled = dumps((function, replace(task, **{common: None})))
            name = function.__name__
            left[_submit(backend, name, _call, pickled, common, shared)] = task
        try:
            for future in as_completed(list(left)):
                task = left.pop(future)
                error = future.exception() if future.status == "error" else None
                if not isinstance(error, KilledWorker):
                    yield future.result()
                elif len(group) > 1:
                    # It may have waited at a worker that another task has killed.
                    groups.append([task])
                elif lost is None:
                    raise error
                else:
                    yield lost(task, error)
        finally:
            backend.client.cancel(list(left))


def _submit(backend: Any, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """Return a future, whose arguments the scheduler keeps: no death loses them."""
    import dask

    # Dask would like to be given data in another way, and warns from 10 MB on.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 PiB"}):
        return backend.client.submit(
            call,
            *arguments,
            key=f"flatmin-{name.strip('_')}-{uuid4().hex}",
            **backend.submit_kwargs,
        )


def _call(pickled: bytes, common: str, shared: Any) -> Any:
    function, task = loads(pickled)
    try:
        return function(replace(task, **{common: shared}))
    except Exception as error:
        raise _workers.able_to_travel(error) from None
