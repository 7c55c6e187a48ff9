"""The phase before the noise: bring θ near a minimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flatmin._utils.progress import progress_bar
from flatmin.dynamics._checkpoints import Checkpoints
from flatmin.dynamics._descent import NoisyDescent
from flatmin.dynamics._recorder import Recorder

__all__ = ["WarmupResult", "record_warmup", "run_warmup"]


class WarmupResult(NamedTuple):
    """Where the warm-up ended and how it went, as storable values."""

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
    rows: Sequence[dict[str, Any]] = (),
    checkpoints: Checkpoints | None = None,
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
    rows : sequence of dict, default=()
        Those until where ``descent`` is, if it comes from a checkpoint.
    checkpoints : Checkpoints, default=None
        Get ``rows``, besides the descent.

    Returns
    -------
    WarmupResult
    """
    rows = list(rows)
    checkpoints = checkpoints or Checkpoints()

    def parts() -> dict[str, Any]:
        return {"rows": rows}

    with progress_bar(n_iter, "warm-up", verbose=verbose) as bar:
        bar.update(descent.iteration)
        while descent.iteration < n_iter and descent.diverged is None:
            in_block = descent.iteration % record_every
            if not in_block and len(rows) == descent.iteration // record_every:
                if not descent.refresh():
                    break
                row = record_warmup(descent, recorder)
                if not descent.accepts(row["loss"]):
                    break
                rows.append(row)
                checkpoints.end_block(descent, parts)
            block = min(record_every - in_block, n_iter - descent.iteration)
            checkpoints.run(descent, block, bar.update, parts)
    if descent.diverged is None:
        descent.accepts(float(recorder.risk.value(descent.theta)))
    theta = descent.theta.cpu().numpy().copy()
    return WarmupResult(theta, rows, descent.iteration, descent.diverged)


def record_warmup(descent: NoisyDescent, recorder: Recorder) -> dict[str, Any]:
    """Measure where a warm-up stands.

    Parameters
    ----------
    descent : NoisyDescent
    recorder : Recorder

    Returns
    -------
    dict
        A row, phase "warmup".
    """
    return recorder.record(
        descent.iteration,
        "warmup",
        descent.theta,
        law=descent.law,
        state=descent.state,
        batch=descent.batch,
    )
