"""The noisy iterations of a fit, inside a skorch net."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from skorch.callbacks import LRScheduler
from skorch.helper import predefined_split

from flatmin._utils.progress import progress_bar
from flatmin.dynamics import (
    Checkpoints,
    EarlyStopping,
    FlatBinding,
    KeptParams,
    MeanLoss,
    NoisyDescent,
    Schedule,
    StopTraining,
    check_callbacks,
    check_monitors,
    check_plain_steps,
    make_schedule,
    resolve_optimizer,
)
from flatmin.estimators._checkpoints import RunCheckpoints
from flatmin.estimators._net import make_reader
from flatmin.estimators._run import Run, make_batches
from flatmin.estimators._trajectory import rows_before
from flatmin.risk.ranks.collectives import is_first

__all__ = ["make_net", "train"]


def make_net(estimator: Any, run: Run) -> Any:
    """Return an initialised net around the module.

    Parameters
    ----------
    estimator : estimator
    run : Run

    Returns
    -------
    skorch net
    """
    split = None
    if run.validation is not None:
        split = predefined_split(
            estimator._for_skorch(run.validation, run.module, run.risk.dtype)
        )
    settings = estimator.optimizer_params or {}
    params = {f"optimizer__{k}": v for k, v in settings.items()}
    net = estimator._net_class(
        run.module,
        criterion=MeanLoss(run.loss, estimator.output_transform),
        optimizer=resolve_optimizer(estimator.optimizer, settings),
        lr=float(estimator.lr),
        max_epochs=math.ceil(int(estimator.max_iter) / int(estimator.record_every)),
        batch_size=-1,
        iterator_valid__batch_size=run.risk.chunk_size,
        train_split=split,
        callbacks=estimator.callbacks,
        use_caching=False,
        device=str(run.risk.device),
        verbose=0,
        **{"callbacks__print_log": None, **estimator._net_params(), **params},
    )
    net.reader_ = make_reader(estimator)
    net.initialize()
    check_callbacks(net.callbacks_)
    recorded = [*(estimator.metrics or ()), *_own_columns(run)]
    check_monitors(net.callbacks_, recorded, validation=run.validation is not None)
    run.schedule = _make_schedule(estimator, run, net)
    return net


def _own_columns(run: Run) -> list[str]:
    """Return the columns of the history that this run has, and others have not."""
    columns = {
        "n_steps": run.law.n_substeps > 1,
        "n_clipped": run.training.clip_norm is not None,
        "lr": run.training.schedule is not None,
    }
    return [name for name, is_there in columns.items() if is_there]


def _make_schedule(estimator: Any, run: Run, net: Any) -> Schedule | None:
    """Return the schedule of η, and refuse a callback that would set η as well."""
    training, law = run.training, run.law
    if training.schedule is None:
        return None
    for name, callback in net.callbacks_:
        if isinstance(callback, LRScheduler):
            raise ValueError(
                "training['schedule'] sets the learning rate in every iteration. Got "
                f"the callback {name} too, which sets it after blocks; leave out one "
                "of them."
            )
    schedule = make_schedule(
        training.schedule,
        training.schedule_params,
        net.optimizer_,
        int(estimator.max_iter),
    )
    momentum = {"momentum": schedule.largest_momentum}
    check_plain_steps(law, type(net.optimizer_), momentum, batched=False)
    lowest, at = schedule.lowest_rate
    if law.in_parameter_units and lowest == 0:
        raise ValueError(
            f"The noise of {type(law).__name__} is in parameter units, and needs "
            f"η > 0. Got a schedule with η = 0 in iteration {at}; end it above 0."
        )
    return schedule


def train(
    estimator: Any,
    run: Run,
    net: Any,
    *,
    binding: FlatBinding,
    saved: RunCheckpoints | None,
) -> None:
    """Run the noisy iterations inside the skorch net.

    Parameters
    ----------
    estimator : estimator
    run : Run
        Is told of a divergence.
    net : skorch net
        From :func:`make_net`.
    binding : FlatBinding
        Holds θ, and moves.
    saved : RunCheckpoints or None
        Where the noise may stand, or be over.
    """
    descent = NoisyDescent(
        run.risk,
        run.law,
        binding,
        net.optimizer_,
        rng=run.generators["noise"],
        on_divergence=estimator.on_divergence,
        offset=run.offset,
        batches=make_batches(estimator, run.risk, run.generators["batches"]),
        kept=_keep(estimator, run, binding),
        clip_norm=run.training.clip_norm,
        schedule=run.schedule,
    )
    stopping = _make_stopping(run)
    title = (
        estimator.method
        if isinstance(estimator.method, str)
        else type(run.law).__name__
    )
    shown = is_first(estimator.distributed) and estimator.verbose
    bar = progress_bar(int(estimator.max_iter), title, verbose=shown)
    net.attach(
        descent,
        run.recorder,
        max_iter=int(estimator.max_iter),
        record_every=int(estimator.record_every),
        offset=run.offset,
        n_steps_before=run.n_steps_before,
        progress=bar.update,
        checkpoints=Checkpoints() if saved is None else saved.of_phase("noise"),
        stopping=stopping,
        n_clipped_before=(
            None if run.training.clip_norm is None else run.n_clipped_before
        ),
    )
    found = None if saved is None else saved.found
    if saved is not None and found is not None and found["phase"] == "finished":
        with saved.restoring():
            net.load_state(found, begun=False)
        run.best_iteration = None if stopping is None else stopping.best_iteration
        return
    if found is not None and found["phase"] == "warmup":
        found = None
    with bar:
        bar.update(found["descent"]["iteration"] if found else 0)
        _iterate(estimator, run, net, stopping=stopping, saved=saved, found=found)
    if saved is not None:
        net.note_block_end()
        saved.save(
            "finished",
            lambda: {**net.state_to_save(), "descent": descent.state_dict()},
        )


def _make_stopping(run: Run) -> EarlyStopping | None:
    settings = run.training.stopping
    if settings is None:
        return None
    column = "valid_score" if settings.on_validation else "loss"
    return EarlyStopping(column, settings.n_iter_no_change, settings.tol)


def _keep(estimator: Any, run: Run, binding: FlatBinding) -> KeptParams | None:
    """Return what the points of a run are kept in, those of earlier fits included."""
    if estimator.keep_params_every is None:
        return None
    return KeptParams(
        binding.theta,
        int(estimator.keep_params_every),
        int(estimator.max_iter),
        n_before=run.n_iter_before,
        offset=run.offset,
        before=rows_before(run.before, run.offset),
    )


def _iterate(
    estimator: Any,
    run: Run,
    net: Any,
    *,
    stopping: EarlyStopping | None,
    saved: RunCheckpoints | None,
    found: dict[str, Any] | None,
) -> None:
    """Run the blocks, all or those that are left."""
    descent = net.descent_
    if run.diverged is not None:  # in the warm-up
        net.measure_start()
        return
    # Only callbacks read these: without any, X need not be converted once more.
    data: Any = run.examples
    if estimator.callbacks:
        data = estimator._for_skorch(data, net.module_, run.risk.dtype)
        examples = {"X": data.X, "y": data.y}
    else:
        examples = {"X": data.X, "y": data.of_own(data.y)}
    with suppress(StopTraining):
        net.notify("on_train_begin", **examples)
        if saved is None or found is None:
            net.end_block()
        else:
            with saved.restoring():
                net.load_state(found, begun=True)
        left = int(estimator.max_iter) - descent.iteration
        done = (
            descent.iteration // int(estimator.record_every) if left else net.max_epochs
        )
        net.fit_loop(**examples, epochs=net.max_epochs - done)
    net.measure_start()  # where no block has begun
    run.diverged = descent.diverged
    if stopping is not None and stopping.best_theta is not None:
        descent.binding.assign(stopping.best_theta)
        run.best_iteration = stopping.best_iteration
    if net.history:
        with suppress(StopTraining):
            net.notify("on_train_end", **examples)
    descent.binding.follow()
