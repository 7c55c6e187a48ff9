"""What :func:`compare_dynamics` is given, checked before anything is run."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from joblib import cpu_count, effective_n_jobs
from joblib.externals.loky.backend.reduction import (  # type: ignore[import-untyped]
    dumps,
)
from joblib.parallel import SequentialBackend, get_active_backend
from sklearn.utils import check_array

from flatmin._utils.arrays import check_one_shape, to_numpy
from flatmin._utils.messages import message, naming
from flatmin._utils.numbers import (
    check_count,
    check_held_by,
    check_positive,
    is_count,
    is_number,
)
from flatmin._utils.random_state import spawn_seeds
from flatmin._utils.trees import as_tree, check_one_length, is_nested
from flatmin.comparison._cluster import fewest_cores, is_cluster
from flatmin.estimators._inputs import N_LOOKED_AT, as_source
from flatmin.risk.data.source import Source, is_data_set, split_targets

__all__ = [
    "check_backend",
    "check_pickles",
    "check_threads",
    "read_quench",
    "resolve_data",
    "resolve_seeds",
]


def read_quench(
    *,
    quench: Any,
    quench_lr: Any,
    quench_loss: Any,
    quench_loss_iter: Any,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return the settings of the quenches, or raise unless they work together."""
    quench = check_count("quench", quench, at_least=0)
    if quench_lr is not None:
        check_positive("quench_lr", quench_lr)
        check_held_by("quench_lr", float(quench_lr), dtype)
    if (quench_loss is None) != (quench_loss_iter is None):
        missing = "quench_loss" if quench_loss is None else "quench_loss_iter"
        raise ValueError(
            "quench_loss and quench_loss_iter, the iterations that a unit may take to "
            f"that loss, come together. Got {missing}=None."
        )
    if quench_loss is not None:
        if not is_number(quench_loss):
            raise ValueError(
                f"quench_loss must be a finite number. Got {quench_loss!r}."
            )
        quench_loss = float(quench_loss)
        quench_loss_iter = check_count("quench_loss_iter", quench_loss_iter)
    return {
        "quench": quench,
        "quench_lr": quench_lr,
        "quench_loss": quench_loss,
        "quench_loss_iter": quench_loss_iter,
    }


def resolve_data(X: Any, y: Any, X_test: Any, y_test: Any, *, estimator: Any) -> Any:
    """Return (X, y), (X, y, X_test, y_test) or the function of the seed."""
    if callable(X) and not is_data_set(X):
        if any(part is not None for part in (y, X_test, y_test)):
            raise ValueError(
                "A function of the seed returns all data: leave y, X_test and y_test "
                "at None, or pass arrays."
            )
        return X
    # None of a result from a file: what it asks for comes next.
    target = None if estimator is None else estimator.target
    needs_y = estimator is None or not estimator._takes_no_y()
    if not is_data_set(X):
        X, y = split_targets(X, y, target)
    if X_test is not None and not is_data_set(X_test):
        X_test, y_test = split_targets(X_test, y_test, target)
    if y is None and needs_y and not is_data_set(X):
        raise ValueError(
            "y must be given, unless X is a data set or a function of the seed, or "
            "the loss is a ModuleLoss of a regressor. Got y=None."
        )
    alone = X_test is None or (needs_y and not is_data_set(X_test))
    if (X_test is None) != (y_test is None) and alone:
        missing = "X_test" if X_test is None else "y_test"
        raise ValueError(f"X_test and y_test come together. Got {missing}=None.")
    parts = (X, y) if X_test is None else (X, y, X_test, y_test)
    names = ("X", "y", "X_test", "y_test")
    found: list[Any] = []
    for place in range(0, len(parts), 2):
        inputs, targets = parts[place : place + 2]
        source = as_source(inputs, targets, target)
        # Read once, a source knows each example, here and in every worker.
        if source is None:
            found.append(_read(names[place], inputs))
            found.append(None if targets is None else _read(names[place + 1], targets))
        else:
            for _ in source.batches(N_LOOKED_AT):
                pass
            found += [source, None]
    return tuple(found)


def check_backend() -> None:
    """Raise unless joblib's back end hands over results as they come."""
    backend, _ = get_active_backend()
    one_by_one = isinstance(backend, SequentialBackend)
    if not (one_by_one or backend.supports_return_generator):
        name = type(backend).__name__.removesuffix("Backend").lower()
        raise ValueError(
            "The back end of joblib must hand over units as they end, as 'loky' and "
            f"'threading' do. Got {name!r}; choose one of them by "
            "joblib.parallel_config(backend=...)."
        )


def check_pickles(held: Any, n_jobs: int | None) -> None:
    """Raise if a data set cannot travel to the processes that are to read it."""
    backend, _ = get_active_backend()
    shares = getattr(backend, "supports_sharedmem", False)
    n_workers = effective_n_jobs(n_jobs)  # type: ignore[arg-type]
    if (n_workers == 1 and not is_cluster()) or shares or callable(held):
        return
    for name, part in zip(("X", "y", "X_test", "y_test"), held, strict=False):
        if isinstance(part, Source):
            try:
                dumps(part)
            except Exception as error:
                raise TypeError(
                    f"{name} must be a data set that can be pickled, for n_jobs="
                    f"{n_jobs} processes. Got {type(part.dataset).__name__}: "
                    f"{message(error)}. Let it open files when it is read, or use "
                    "joblib.parallel_config(backend='threading')."
                ) from error


def _read(name: str, data: Any) -> Any:
    """Return data that an estimator can look into; here, and not in each unit."""
    if is_nested(data):
        tree = as_tree(data, name)
        for title, leaf in tree.named(name):
            _read(title, leaf)
        check_one_length(tree, name)
        return data
    check_one_shape(name, data)
    array = to_numpy(name, data)
    with naming(name):
        as_array = np.asarray(array)
        if name[0] == "X":
            check_array(
                array,
                allow_nd=True,
                ensure_2d=name in ("X", "X_test"),  # and no leaf of a mapping
                dtype="numeric",
                input_name=name,
            )
    if as_array.ndim == 0 or not len(as_array):
        raise ValueError(f"{name} must hold at least one example. Got {data!r}.")
    return data


def resolve_seeds(n_seeds: Any, random_state: Any) -> list[int]:
    """Return the seeds that were given, or as many as asked from ``random_state``."""
    if isinstance(n_seeds, Integral):
        n_seeds = check_count("n_seeds", n_seeds)
        names = [str(i) for i in range(n_seeds)]
        return list(spawn_seeds(random_state, names).values())
    if not isinstance(n_seeds, Iterable):
        raise TypeError(f"n_seeds must be a number or the seeds. Got {n_seeds!r}.")
    with naming("n_seeds"):
        seeds = list(n_seeds)
    if not seeds or not all(is_count(seed, 0) for seed in seeds):
        raise ValueError(
            "Seeds must be integers of at least 0, and there must be one. "
            f"Got {seeds!r}."
        )
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"Every seed may be there once. Got {seeds!r}.")
    return [int(seed) for seed in seeds]


def check_threads(n_threads: int, n_jobs: int | None) -> None:
    """Raise if the workers together would have more threads than there are cores."""
    workers = effective_n_jobs(n_jobs)  # type: ignore[arg-type]
    if n_threads == 1:
        return
    if is_cluster():
        if n_threads > (fewest := fewest_cores()):
            raise ValueError(
                "n_threads must be at most the cores that a worker of the cluster has "
                f"for each of its units, {fewest}. Got {n_threads}; start workers with "
                "fewer threads of Dask's, or more cores."
            )
    elif n_threads * workers > cpu_count():
        raise ValueError(
            f"n_threads must be at most the cores a worker has, "
            f"{max(1, cpu_count() // workers)} with {workers} workers on "
            f"{cpu_count()} cores. Got {n_threads}."
        )
