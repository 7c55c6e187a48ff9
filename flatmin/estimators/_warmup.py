"""A warm-up that is run once for many laws, through a joblib memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sklearn.utils.validation import check_memory

from flatmin.dynamics import (
    Checkpoints,
    NoisyDescent,
    Recorder,
    WarmupResult,
    run_warmup,
)
from flatmin.estimators._fingerprint import fingerprint
from flatmin.estimators._run import Run

__all__ = ["remembered_warmup", "warmup_key"]


def warmup_key(estimator: Any, run: Run, descent: NoisyDescent) -> dict[str, Any]:
    """Return what a warm-up depends on besides its length.

    Parameters
    ----------
    estimator : estimator
    run : Run
    descent : NoisyDescent
        Where it begins.

    Returns
    -------
    dict
        For :func:`remembered_warmup`.
    """
    return {
        "theta": descent.theta.cpu().numpy().copy(),
        "module": fingerprint(run.module),
        "data": fingerprint([run.examples, run.weights, run.validation]),
        "loss": fingerprint(estimator.loss),
        "law": fingerprint(run.warmup_law),
        "optimizer": fingerprint(type(descent.optimizer)),
        "lr": float(descent.optimizer.param_groups[0]["lr"]),
        "seeds": [run.seeds["warmup"], run.seeds["warmup batches"]],
        "gradient_batch_size": estimator.gradient_batch_size,
        "arithmetic": f"{run.risk.dtype} {run.risk.device} {torch.__version__}",
        "threads": torch.get_num_threads(),
        "batch_norm": estimator.batch_norm,
        "on_divergence": estimator.on_divergence,
    }


def remembered_warmup(
    descent: NoisyDescent,
    recorder: Recorder,
    key: Mapping[str, Any],
    memory: Any,
    **settings: Any,
) -> WarmupResult:
    """Run a warm-up, or take it from a memory; then ``descent`` does not move.

    Parameters
    ----------
    descent : NoisyDescent
    recorder : Recorder
    key : mapping of str to plain values
        Everything that the result depends on, besides the settings; arrays contiguous.
    memory : str or joblib.Memory
    **settings
        Of :func:`flatmin.dynamics.run_warmup`.

    Returns
    -------
    WarmupResult
    """
    # ``joblib.hash`` of modules and generators is not stable: the key stands for them.
    # So do they for a run that a checkpoint has brought on its way.
    ignored = ["descent", "recorder", "verbose", "rows", "checkpoints"]
    cached = check_memory(memory).cache(_run, ignore=ignored)
    return WarmupResult(*cached(dict(key), descent, recorder, **settings))


def _run(
    key: dict[str, Any],
    descent: NoisyDescent,
    recorder: Recorder,
    n_iter: int,
    record_every: int,
    verbose: bool | int,
    rows: Sequence[dict[str, Any]],
    checkpoints: Checkpoints,
) -> tuple[Any, ...]:
    del key  # joblib's, not ours
    return tuple(
        run_warmup(
            descent,
            recorder,
            n_iter=n_iter,
            record_every=record_every,
            verbose=verbose,
            rows=rows,
            checkpoints=checkpoints,
        )
    )
