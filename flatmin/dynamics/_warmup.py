"""The phase before the noise: bring θ near a minimum, once for many laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from joblib import Memory

from flatmin._utils.progress import progress_bar
from flatmin.dynamics._descent import NoisyDescent
from flatmin.dynamics._recorder import Recorder

__all__ = ["WarmupResult", "run_warmup"]


class WarmupResult(NamedTuple):
    """Where the warm-up ended and how it went, as plain values."""

    theta: np.ndarray  # (D,)
    rows: list[dict[str, Any]]  # Recorder rows, phase "warmup"
    n_iter: int  # steps that led to theta
    diverged: str | None  # what happened, after a stop


def run_warmup(
    build: Callable[[], tuple[NoisyDescent, Recorder]],
    key: Mapping[str, Any] | None,
    *,
    n_iter: int,
    record_every: int,
    memory: Memory,
    verbose: bool | int,
) -> WarmupResult:
    """Run a warm-up, or take it from a joblib memory.

    Parameters
    ----------
    build : callable
        Makes the descent and its recorder; called only if there is work to do.
    key : mapping of str to plain values, or None
        Everything that the result depends on, besides ``n_iter`` and
        ``record_every``; arrays contiguous. None bypasses the memory.
    n_iter : int
        Steps.
    record_every : int
        Steps between two rows; rows are written before each block.
    memory : joblib.Memory
    verbose : bool or int
        Shows a progress bar.

    Returns
    -------
    WarmupResult
    """
    if key is None:
        return _run(build, n_iter, record_every, verbose)
    cached = memory.cache(_run_keyed, ignore=["build", "verbose"])
    return WarmupResult(*cached(dict(key), build, n_iter, record_every, verbose))


def _run_keyed(
    key: dict[str, Any],
    build: Callable[[], tuple[NoisyDescent, Recorder]],
    n_iter: int,
    record_every: int,
    verbose: bool | int,
) -> tuple[Any, ...]:
    del key  # joblib's, not ours
    return tuple(_run(build, n_iter, record_every, verbose))


def _run(
    build: Callable[[], tuple[NoisyDescent, Recorder]],
    n_iter: int,
    record_every: int,
    verbose: bool | int,
) -> WarmupResult:
    descent, recorder = build()
    rows = []
    with progress_bar(n_iter, "warm-up", verbose=verbose) as bar:
        while descent.iteration < n_iter and descent.diverged is None:
            if not descent.refresh():
                break
            row = recorder.record(
                descent.iteration,
                "warmup",
                descent.theta,
                descent.law,
                descent.state,
            )
            if not descent.check(row["loss"]):
                break
            rows.append(row)
            block = min(record_every, n_iter - descent.iteration)
            descent.run(block, bar.update)
    if descent.diverged is None:
        descent.check(float(recorder.risk.value(descent.theta)))
    theta = descent.theta.cpu().numpy().copy()
    return WarmupResult(theta, rows, descent.iteration, descent.diverged)
