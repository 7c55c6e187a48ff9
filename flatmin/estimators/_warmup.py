"""The warm-up of a fit; through a joblib memory it is run once for many laws."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.utils.validation import check_memory

from flatmin._utils.fingerprint import fingerprint
from flatmin._utils.random import make_generator
from flatmin.dynamics import (
    Checkpoints,
    FlatBinding,
    NoisyDescent,
    Recorder,
    WarmupResult,
    resolve_optimizer,
    run_warmup,
)
from flatmin.estimators._checkpoints import RunCheckpoints
from flatmin.estimators._run import Run, make_batches

__all__ = ["warm_up"]


def warm_up(
    estimator: Any, run: Run, binding: FlatBinding, saved: RunCheckpoints | None
) -> None:
    """Move θ by ``warmup_iter`` iterations of the warm-up's own law.

    Parameters
    ----------
    estimator : estimator
    run : Run
        Gets the rows, and how many iterations there were.
    binding : FlatBinding
        Holds θ.
    saved : RunCheckpoints or None
        Where the warm-up may stand, or be over.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C, with a row of where it came.
    """
    found = None if saved is None else saved.found
    if found is not None and found["phase"] != "warmup":
        run.rows, run.offset = found["warmup_rows"], found["offset"]
        run.diverged = found["diverged"]
        return
    if saved is not None and found is None:
        batches = make_batches(estimator, run.risk, make_generator(0, run.risk.device))
        saved.check_law(binding.theta, batches)
    if not estimator.warmup_iter or run.continues:
        return
    lr = estimator.lr if estimator.warmup_lr is None else estimator.warmup_lr
    kind = resolve_optimizer(estimator.warmup_optimizer, {})
    recorder = copy.copy(run.recorder)
    recorder.metrics = {}
    seeds, device = run.seeds, run.risk.device
    descent = NoisyDescent(
        run.risk,
        run.warmup_law,
        binding,
        kind(binding.params_for(kind), lr=float(lr)),  # type: ignore[call-arg]
        make_generator(seeds["warmup"], device),
        on_divergence=estimator.on_divergence,
        batches=make_batches(
            estimator, run.risk, make_generator(seeds["warmup batches"], device)
        ),
    )
    settings = {
        "n_iter": int(estimator.warmup_iter),
        "record_every": int(estimator.record_every),
        "verbose": estimator.verbose,
        "rows": [],
        "checkpoints": Checkpoints(),
    }
    key = None
    # With random_state=None every warm-up is another one.
    if not (estimator.memory is None or estimator.random_state is None or run.streamed):
        key = _describe(estimator, run, descent)
    if saved is not None:
        settings["checkpoints"] = saved.of_phase("warmup")
        if found is not None:
            settings["rows"] = found["rows"]
            descent.load_state_dict(found["descent"])
    try:
        if key is None:
            result = run_warmup(descent, recorder, **settings)
        else:
            result = _remembered(descent, recorder, key, estimator.memory, **settings)
    except KeyboardInterrupt:
        run.offset = descent.iteration
        run.rows = [
            recorder.record(
                run.offset,
                "warmup",
                descent.theta,
                descent.law,
                descent.state,
                descent.batch,
            )
        ]
        raise
    run.offset, run.diverged = result.n_iter, result.diverged
    run.rows = list(result.rows)
    binding.assign(torch.tensor(result.theta, device=run.risk.device))


def _describe(estimator: Any, run: Run, descent: NoisyDescent) -> dict[str, Any]:
    """Return what a warm-up depends on besides its length, as plain values."""
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


def _remembered(
    descent: NoisyDescent,
    recorder: Recorder,
    key: dict[str, Any],
    memory: Any,
    **settings: Any,
) -> WarmupResult:
    """Run a warm-up, or take it from a memory; then ``descent`` does not move."""
    # ``joblib.hash`` of modules and generators is not stable: the key stands for them.
    # So does it for a run that a checkpoint has brought on its way.
    ignored = ["descent", "recorder", "verbose", "rows", "checkpoints"]
    cached = check_memory(memory).cache(_run, ignore=ignored)
    return WarmupResult(*cached(key, descent, recorder, **settings))


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
