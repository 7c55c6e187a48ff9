"""A warm-up that is run once for many laws, through a joblib memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sklearn.utils.validation import check_memory

from flatmin.dynamics import NoisyDescent, Recorder, WarmupResult, run_warmup

__all__ = ["remembered_warmup"]


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
    ignored = ["descent", "recorder", "verbose"]
    cached = check_memory(memory).cache(_run, ignore=ignored)
    return WarmupResult(*cached(dict(key), descent, recorder, **settings))


def _run(
    key: dict[str, Any],
    descent: NoisyDescent,
    recorder: Recorder,
    n_iter: int,
    record_every: int,
    verbose: bool | int,
) -> tuple[Any, ...]:
    del key  # joblib's, not ours
    return tuple(
        run_warmup(
            descent,
            recorder,
            n_iter=n_iter,
            record_every=record_every,
            verbose=verbose,
        )
    )
