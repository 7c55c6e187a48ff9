"""The phase before the noise: bring θ near a minimum."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

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
    descent: NoisyDescent,
    recorder: Recorder,
    *,
    n_iter: int,
    record_every: int,
    verbose: bool | int,
) -> WarmupResult:
    """Run a warm-up; the result depends on nothing but where the descent starts.

    Parameters
    ----------
    descent : NoisyDescent
        Moves its θ.
    recorder : Recorder
    n_iter : int
        Steps.
    record_every : int
        Steps between two rows; rows are written before each block.
    verbose : bool or int
        Shows a progress bar.

    Returns
    -------
    WarmupResult
    """
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
                descent.batch,
            )
            if not descent.check(row["loss"]):
                break
            rows.append(row)
            descent.run(min(record_every, n_iter - descent.iteration), bar.update)
    if descent.diverged is None:
        descent.check(float(recorder.risk.value(descent.theta)))
    theta = descent.theta.cpu().numpy().copy()
    return WarmupResult(theta, rows, descent.iteration, descent.diverged)
