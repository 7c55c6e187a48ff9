"""All that a fit can check and build before work is done."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from flatmin._utils.arrays import to_array
from flatmin._utils.names import check_text
from flatmin._utils.numbers import check_held_by
from flatmin._utils.paths import check_path
from flatmin._utils.placement import resolve_device, resolve_dtype
from flatmin._utils.quiet import ignored
from flatmin._utils.random import make_generator
from flatmin._utils.random_state import spawn_seeds
from flatmin.dynamics import (
    Recorder,
    check_callbacks,
    check_plain_steps,
    check_room,
    count_kept,
    resolve_optimizer,
)
from flatmin.estimators._checkpoints import check_can_resume
from flatmin.estimators._examples import Examples
from flatmin.estimators._held_out import hold_out
from flatmin.estimators._module import build_module
from flatmin.estimators._run import Run, make_batches
from flatmin.estimators._settings import (
    StoppingSettings,
    read_folder,
    read_training,
    read_warmup,
)
from flatmin.estimators._start import check_start
from flatmin.estimators._trajectory import rows_before
from flatmin.risk import EmpiricalRisk
from flatmin.risk.data.inputs import check_held
from flatmin.risk.network.batch_statistics import normalises_batch
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.ranks.collectives import Ranks

__all__ = ["prepare", "start_of"]


def prepare(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    validation: tuple[Any, Any],
    ranks: Ranks,
) -> Run:
    """Check everything that can be checked before work is done.

    Parameters
    ----------
    estimator : estimator
        Learns from the data what later ones must look like.
    X, y, sample_weight : object
        As in ``fit``.
    validation : tuple of (X_val, y_val)
    ranks : Ranks

    Returns
    -------
    Run
    """
    device, dtype = resolve_device(estimator.device), resolve_dtype(estimator.dtype)
    _check_settings(estimator, dtype)
    if ranks.size > 1:
        _check_shared(estimator)
    folder = read_folder(estimator.checkpoint_dir)
    check_can_resume(estimator.random_state, folder)
    law = estimator._make_law()
    warmup = read_warmup(estimator, dtype)
    training = read_training(estimator.training)
    warm = bool(estimator.warm_start) and hasattr(estimator, "net_")
    examples = estimator._check_examples(X, y, "X and y", reset=not warm, ranks=ranks)
    sample_weight = examples.weights_of_all(sample_weight)
    held_out = estimator._check_validation(*validation, ranks)
    fraction = _fraction(training.stopping, held_out)
    seeds = _seeds(estimator, ranks, splits=fraction is not None)
    if fraction is not None:
        seed = seeds.pop("validation")
        examples, sample_weight, held_out = hold_out(
            estimator, fraction, examples, sample_weight, seed=seed
        )
    weights = estimator._combine_weights(sample_weight, examples.y, reset=True)
    placed: dict[str, Any] = {"device": device, "dtype": dtype}
    module = _make_module(estimator, examples, seeds["init"], **placed, warm=warm)
    loss = estimator._probe_loss(module, examples, dtype, device)
    options = estimator._risk_options() | placed
    options["batch_norm"] = estimator.batch_norm
    options["distributed"] = bool(estimator.distributed)
    own_weights = None if weights is None else examples.of_own(weights)
    risk = EmpiricalRisk(
        module, loss, *examples.for_risk(), sample_weight=own_weights, **options
    )
    _check_statistics(module, risk)
    recorder = Recorder(risk, estimator._scorer(examples.y), metrics=estimator.metrics)
    if held_out is not None:
        by_class = estimator._combine_weights(None, held_out.y, reset=False)
        with ignored(UserWarning):  # said by the risk above
            recorder.validation_risk = EmpiricalRisk(
                module,
                loss,
                *held_out.for_risk(),
                sample_weight=None if by_class is None else held_out.of_own(by_class),
                **_for_validation(options),
            )
        recorder.validation_score = estimator._scorer(held_out.y)
    before = _read_before(estimator) if warm else {}
    run = Run(
        module=module,
        loss=loss,
        risk=risk,
        recorder=recorder,
        law=law,
        seeds=seeds,
        generators=_generators(estimator, seeds, device, warm=warm),
        examples=examples,
        weights=weights,
        validation=held_out,
        continues=warm,
        warmup=None if warm else warmup,
        folder=folder,
        training=training,
        **before,
    )
    _check_laws(estimator, run)
    _check_kept(estimator, run)
    return run


def start_of(estimator: Any, run: Run) -> Tensor:
    """Return where a run begins.

    Parameters
    ----------
    estimator : estimator
    run : Run

    Returns
    -------
    Tensor of shape (D,)
        ``params_init``, θ where an earlier fit ended, or the module's.

    Raises
    ------
    ValueError
        If ``params_init`` does not fit the module.
    """
    if estimator.params_init is None or run.continues:
        return run.risk.params()
    theta = to_array("params_init", estimator.params_init, (None,))
    if len(theta) != run.risk.n_params:
        raise ValueError(
            f"params_init must be one flat vector of the module's "
            f"{run.risk.n_params} trainable parameters. Got shape {theta.shape}."
        )
    start = torch.as_tensor(theta, dtype=run.risk.dtype, device=run.risk.device)
    check_held(start, torch.as_tensor(theta), "params_init")
    return start


def _seeds(estimator: Any, ranks: Ranks, *, splits: bool) -> dict[str, int]:
    names = ("init", "warmup", "noise", "batches", "warmup batches")
    names += ("validation",) if splits else ()
    seeds = spawn_seeds(estimator.random_state, names)
    told = ranks.of_first(torch.tensor(list(seeds.values()))).tolist()
    return dict(zip(seeds, told, strict=True))


def _check_shared(estimator: Any) -> None:
    """Raise where ranks that share the examples could not end alike."""
    if estimator.memory is not None:
        raise ValueError(
            "With distributed=True a warm-up that one rank remembers and another does "
            f"not would end neither. Got memory={estimator.memory!r}; use "
            "checkpoint_dir, or leave memory at None."
        )


def _fraction(
    stopping: StoppingSettings | None, held_out: Examples | None
) -> float | None:
    """Return the part of the examples to hold out, if early stopping needs one."""
    if stopping is None or not stopping.on_validation:
        return None
    if held_out is None:
        return 0.1 if stopping.fraction is None else stopping.fraction
    if stopping.fraction is not None:
        raise ValueError(
            "early_stopping looks at X_val where it is given, and holds out nothing "
            f"else. Got validation_fraction={stopping.fraction:g} too; leave out one "
            "of them."
        )
    return None


def _check_settings(estimator: Any, dtype: torch.dtype) -> None:
    """Check what needs no data, and is not checked where it is read."""
    check_held_by("lr", float(estimator.lr), dtype)
    for name in ("module_params", "method_params"):
        for key in getattr(estimator, name) or ():
            check_text(f"a name in {name}", key)
    if isinstance(estimator.memory, str):
        check_path("memory", estimator.memory)
    check_callbacks(estimator.callbacks or [])
    resolve_optimizer(estimator.optimizer, estimator.optimizer_params or {})


def _make_module(
    estimator: Any,
    examples: Any,
    seed: int,
    *,
    warm: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """Return a new module, or a copy of the fitted one if ``warm``."""
    if warm:
        check_start(estimator)
        return copy_module(estimator.module_, device=device, dtype=dtype)
    n_features = 1
    if not isinstance(estimator._input_shape, dict):
        n_features = math.prod(estimator._input_shape)
    elif estimator.module is None:
        raise ValueError(
            "The module that is built by default takes one array. Got X with the parts "
            f"{', '.join(estimator._input_shape)}; pass module=."
        )
    return build_module(
        estimator.module,
        estimator.module_params,
        n_features=n_features,
        n_outputs=estimator._n_outputs(examples.y),
        seed=seed,
        dtype=dtype,
        device=device,
    )


def _generators(
    estimator: Any, seeds: dict[str, int], device: torch.device, *, warm: bool
) -> dict[str, torch.Generator]:
    """Return those of noise and batches, where an earlier fit left them if ``warm``."""
    made = {name: make_generator(seeds[name], device) for name in ("noise", "batches")}
    if warm:
        for name, state in estimator._generator_states.items():
            made[name].set_state(state)
    return made


def _for_validation(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a risk that has the training set's statistics."""
    if options["batch_norm"] == "batch":
        return options | {"batch_norm": "frozen"}
    return options


def _check_statistics(module: nn.Module, risk: EmpiricalRisk) -> None:
    """Raise where BatchNorm could not predict as it is trained."""
    risk.check_running_statistics()
    if risk.batch_norm == "batch" and normalises_batch(module):
        raise ValueError(
            "Predictions after batch_norm='batch' need BatchNorm layers with running "
            "statistics. Got one with track_running_stats=False; set it to True, which "
            "changes nothing in the training."
        )


def _check_laws(estimator: Any, run: Run) -> None:
    """Raise where a law, or its optimizer, cannot work on these examples."""
    settings = estimator.optimizer_params or {}
    optimizer = resolve_optimizer(estimator.optimizer, settings)
    laws = [run.law] if run.warmup is None else [run.law, run.warmup.law]
    batches = make_batches(estimator, run.risk, run.generators["batches"])
    for law in laws:
        law.check(run.risk)
        if batches is not None:
            batches.check(law)
    clip_norm, batched = run.training.clip_norm, batches is not None
    check_plain_steps(run.law, optimizer, settings, batched, clip_norm=clip_norm)
    if run.warmup is not None:
        check_plain_steps(run.warmup.law, run.warmup.optimizer, {}, batched)


def _check_kept(estimator: Any, run: Run) -> None:
    """Raise where the points that are to be kept do not fit into memory."""
    every = estimator.keep_params_every
    if every is not None:
        n_rows = count_kept(int(every), int(estimator.max_iter), run.n_iter_before)
        before = rows_before(run.before, run.offset)
        n_rows += 0 if before is None else len(before[0])
        check_room(n_rows, run.risk.n_params, run.risk.dtype)


def _read_before(estimator: Any) -> dict[str, Any]:
    """Return what a run has of the earlier fit that it goes on from."""
    rows = estimator.history_.to_dict("records")
    return {
        "n_iter_before": estimator.n_iter_,
        "n_steps_before": estimator.n_steps_,
        "n_clipped_before": estimator._n_clipped,
        "offset": estimator._iteration,
        # Without the one that this fit begins with.
        "rows": [row for row in rows if row["iteration"] < estimator._iteration],
        "before": estimator.trajectory_,
    }
