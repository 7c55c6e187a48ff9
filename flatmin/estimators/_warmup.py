"""The warm-up of a fit; through a joblib memory it is run once for many laws."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import joblib
import torch
from sklearn.utils.validation import check_memory

from flatmin._runs.fingerprint import hashes
from flatmin._runs.storable_bytes import from_bytes, to_bytes
from flatmin._utils.random import make_generator
from flatmin.dynamics import (
    Checkpoints,
    FlatBinding,
    NoisyDescent,
    Recorder,
    WarmupResult,
    check_rows,
    record_warmup,
    run_warmup,
)
from flatmin.estimators._checkpoints import RunCheckpoints
from flatmin.estimators._run import Run, make_batches
from flatmin.estimators._settings import WarmupSettings
from flatmin.risk.ranks.collectives import is_first

__all__ = ["warm_up"]


def warm_up(
    estimator: Any, run: Run, binding: FlatBinding, saved: RunCheckpoints | None
) -> None:
    """Move θ by the iterations of the warm-up, with its own law.

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
    if run.warmup is None:
        return
    recorder = copy.copy(run.recorder)
    recorder.metrics = {}
    descent = _make_descent(estimator, run, run.warmup, binding=binding)
    # With random_state=None two warm-ups draw other numbers, so none is remembered.
    is_kept = not (estimator.memory is None or estimator.random_state is None)
    # The key is made before a checkpoint moves θ: it names the start of the warm-up.
    key = _describe(estimator, run, descent) if is_kept and not run.streamed else None
    settings: dict[str, Any] = {
        "n_iter": run.warmup.max_iter,
        "record_every": int(estimator.record_every),
        "verbose": is_first(estimator.distributed) and estimator.verbose,
        "rows": [],
        "checkpoints": Checkpoints(),
    }
    if saved is not None:
        settings["checkpoints"] = saved.of_phase("warmup")
        if found is not None:
            with saved.restoring():
                check_rows(found["rows"])
                settings["rows"] = found["rows"]
                descent.load_state_dict(found["descent"])
    try:
        if key is None:
            result = run_warmup(descent, recorder, **settings)
        else:
            result = _remembered(descent, recorder, key, estimator.memory, **settings)
    except KeyboardInterrupt:
        run.offset = descent.iteration
        run.rows = [record_warmup(descent, recorder)]
        raise
    run.offset, run.diverged = result.n_iter, result.diverged
    run.rows = list(result.rows)
    binding.assign(torch.tensor(result.theta, device=run.risk.device))


def _make_descent(
    estimator: Any, run: Run, warmup: WarmupSettings, *, binding: FlatBinding
) -> NoisyDescent:
    """Return the descent of a warm-up, with generators of its own."""
    device = run.risk.device
    return NoisyDescent(
        run.risk,
        warmup.law,
        binding,
        warmup.optimizer(binding.params_for(warmup.optimizer), lr=warmup.lr),  # type: ignore[call-arg]
        rng=make_generator(run.seeds["warmup"], device),
        on_divergence=estimator.on_divergence,
        batches=make_batches(
            estimator, run.risk, make_generator(run.seeds["warmup batches"], device)
        ),
    )


def _describe(estimator: Any, run: Run, descent: NoisyDescent) -> dict[str, str]:
    """Return hashes of what a warm-up depends on besides its length."""
    return hashes(
        {
            "theta": descent.theta,
            "module": run.module,
            "data": [
                run.examples.identity(),
                run.weights,
                run.validation and run.validation.identity(),
            ],
            "loss": estimator.loss,
            "output_transform": estimator.output_transform,
            "positions": estimator.positions,
            "l2": float(estimator.l2),
            "law": descent.law,
            "optimizer": type(descent.optimizer),
            "lr": float(descent.optimizer.param_groups[0]["lr"]),
            "seeds": [run.seeds["warmup"], run.seeds["warmup batches"]],
            "gradient_batch_size": estimator.gradient_batch_size,
            "arithmetic": f"{run.risk.dtype} {run.risk.device} {torch.__version__}",
            "threads": torch.get_num_threads(),
            "batch_norm": estimator.batch_norm,
            "on_divergence": estimator.on_divergence,
        }
    )


def _remembered(
    descent: NoisyDescent,
    recorder: Recorder,
    key: dict[str, str],
    memory: Any,
    **settings: Any,
) -> WarmupResult:
    """Run a warm-up, or take its result from a memory, which moves no descent."""
    memory = check_memory(memory)
    # joblib would hash all arguments. Its hash of a module or a generator differs from
    # one process to the next, so it leaves these out, and ``key`` takes their place.
    # It leaves out ``rows`` and ``checkpoints`` too: a warm-up that a checkpoint brings
    # back ends where the same warm-up ends without it.
    ignored = ["descent", "recorder", "runs", "verbose", "rows", "checkpoints"]
    cached = memory.cache(_run, ignore=ignored)
    runs: list[WarmupResult | None] = []
    arguments = (joblib.hash(key), descent, recorder, runs)
    is_known = getattr(cached, "check_call_in_cache", None)
    run_anew = getattr(cached, "call", _run)  # a memory need not have more than cache
    try:
        known = is_known is not None and is_known(*arguments, **settings)
        found = cached(*arguments, **settings)
        if not runs:
            return _unpack(found)
        # joblib had an entry, and still called ``_run``: it could not read the entry,
        # and has replaced it.
        fault = "joblib cannot read it." if known else None
    except Exception as error:
        if runs:  # an error of the warm-up, not of the memory
            raise
        fault = str(error)
        if not isinstance(error, ValueError) or isinstance(error, UnicodeError):
            # joblib cannot read what it keeps of the code of ``_run``. After ``clear``
            # it writes that anew.
            getattr(cached, "clear", lambda warn: None)(warn=False)
    if fault is not None:
        warnings.warn(
            f"What the memory {getattr(memory, 'location', memory)} holds of a warm-up "
            f"is damaged: {fault} The warm-up is run again, and replaces it.",
            stacklevel=2,
        )
    if not runs:
        run_anew(*arguments, **settings)
    result = runs[-1]
    if result is None:
        raise RuntimeError(f"{memory} must call the function that it is given.")
    return result


def _run(
    key: str,
    descent: NoisyDescent,
    recorder: Recorder,
    runs: list[WarmupResult | None],
    n_iter: int,
    record_every: int,
    verbose: bool | int,
    rows: Sequence[dict[str, Any]],
    checkpoints: Checkpoints,
) -> bytes:
    """Append the result to ``runs``, and return it with a checksum."""
    del key  # joblib's, not ours
    runs.append(None)
    runs[-1] = result = run_warmup(
        descent,
        recorder,
        n_iter=n_iter,
        record_every=record_every,
        verbose=verbose,
        rows=rows,
        checkpoints=checkpoints,
    )
    return _pack(result)


def _pack(result: WarmupResult) -> bytes:
    # joblib pickles what it keeps. Bytes are the simplest object that there is to read
    # from a damaged file.
    content = to_bytes(tuple(result), "the warm-up")
    return hashlib.sha256(content).digest() + content


def _unpack(found: Any) -> WarmupResult:
    if not isinstance(found, bytes):
        raise ValueError("it is of another kind.")
    digest, content = found[:32], found[32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum is wrong.")
    return WarmupResult(*from_bytes(content))
