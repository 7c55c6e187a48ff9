"""What a worker does: a seed's warm-up, and a method's run from where it ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from flatmin._utils.messages import message
from flatmin._utils.placement import resolve_device
from flatmin.comparison._checkpoints import UnitFolder
from flatmin.comparison._fits import Data, divergence, fit, guarded, history, measure_at
from flatmin.comparison._plan import Plan
from flatmin.comparison._provenance import place
from flatmin.comparison._quench import quench, quench_to_loss
from flatmin.comparison._tasks import Outcome, Start, StartTask, Unit, UnitTask

__all__ = ["kept_unit", "lost_start", "lost_unit", "run_start", "run_unit"]

_KEYS = ("method", "seed", "iteration", "phase")


@dataclass(frozen=True)
class _DistanceFrom:
    """‖θ - θ₀‖, a metric."""

    theta: np.ndarray  # (D,)

    def __call__(self, risk: Any, theta: torch.Tensor) -> torch.Tensor:
        start = torch.as_tensor(self.theta, dtype=theta.dtype, device=theta.device)
        return torch.linalg.vector_norm((theta - start).double())


def run_start(task: StartTask) -> Start | None:
    """Run the part that all methods of a seed share, or take it from its folder.

    Parameters
    ----------
    task : StartTask

    Returns
    -------
    Start or None
        None if another comparison is at it.

    Raises
    ------
    TypeError
        The estimator's or a metric's.
    ValueError
        The estimator's, about its settings or the data, which no method could use.
    """
    began = time.perf_counter()
    try:
        with task.folder.held() as free:
            if not free:
                return None
            found = task.folder.read()
            if found is not None:
                return Start(**found)
            task.folder.begin()
            start = _run_start(task)
            task.folder.write(vars(start))
            return start
    except (TypeError, ValueError):
        raise
    except Exception as error:
        return lost_start(task, error, time.perf_counter() - began)


def lost_start(task: StartTask, error: Exception, seconds: float = math.nan) -> Start:
    """Return what stands for a warm-up that an error has ended.

    Parameters
    ----------
    task : StartTask
    error : Exception
    seconds : float, default=nan

    Returns
    -------
    Start
    """
    return Start(task.seed, None, [], {}, _named(error), seconds)


def _run_start(task: StartTask) -> Start:
    plan, seed = task.plan, task.seed
    estimator = plan.source.estimator
    torch.set_num_threads(plan.n_threads)
    began = time.perf_counter()
    # Without iterations of its own a fit is its warm-up, and tries out the metrics.
    settings = {
        "method": "gd",
        "method_params": None,
        "max_iter": 0,
        "metrics": _metrics(estimator, plan) or None,
        "memory": task.memory,
        **task.folder.fits("fit"),
    }
    model = fit(estimator, seed, plan.source.load(seed), settings)
    rows = history(model)
    _check_names(plan.end_metrics, rows[-1])
    ends = measure_at(model.risk_, plan.end_metrics, "end_metrics")
    return Start(
        seed,
        model.params_,
        [
            row | {"iteration": row["iteration"] - rows[-1]["iteration"]}
            for row in rows
            if row["phase"] == "warmup"
        ],
        ends,
        divergence(model),
        time.perf_counter() - began,
    )


def run_unit(task: UnitTask) -> Outcome | None:
    """Run one method from a start, and quench it, or take it from its folder.

    The folder keeps a unit that was run to its end, or that diverged. It keeps no unit
    that raised an error, because a second try may succeed.

    Parameters
    ----------
    task : UnitTask

    Returns
    -------
    tuple of Unit and dict, or None
        The unit and its provenance. A method that diverged has the rows until then. A
        method that raised has the rows of the fits that ended before. None if another
        comparison computes this unit now.
    """
    began = time.perf_counter()
    try:
        with task.folder.held() as free:
            if not free:
                return None
            # Another comparison may have ended it meanwhile.
            found = kept_unit(task.plan, task.folder)
            if found is None:
                task.folder.begin()
                found = _run_unit(task)
            return found
    except Exception as error:  # the folder's
        seconds = time.perf_counter() - began
        return lost_unit(task, error, "warmup", seconds)


def kept_unit(plan: Plan, folder: UnitFolder) -> Outcome | None:
    """Return a unit that its folder holds, and its provenance.

    Parameters
    ----------
    plan : Plan
    folder : UnitFolder

    Returns
    -------
    tuple of Unit and dict, or None
    """
    found = folder.read()
    # A unit that has not kept its parameters is run again for them.
    if found is None or (plan.keep_params and "params" not in found):
        return None
    kept = found["params"] if plan.keep_params else {}
    unit = Unit(pd.DataFrame(found["rows"]), found["record"], kept)
    return unit, found["provenance"]


def lost_unit(
    task: UnitTask, error: Exception, phase: str = "noise", seconds: float = math.nan
) -> Outcome:
    """Return what stands for a unit that an error has ended from outside.

    Parameters
    ----------
    task : UnitTask
    error : Exception
    phase : str, default="noise"
    seconds : float, default=nan

    Returns
    -------
    tuple of Unit and dict
        With the rows of the warm-up.
    """
    record = _record(task, phase=phase, failure=_named(error), seconds=seconds)
    if task.plan.quench_loss is not None:
        record["quench_loss"] = "failed"
    unit = Unit(_table(task.start.rows, record), record, {})
    return unit, dict(task.plan.provenance)


def _run_unit(task: UnitTask) -> Outcome:
    plan, start = task.plan, task.start
    torch.set_num_threads(plan.n_threads)
    began = time.perf_counter()
    rows, phase, failure = list(start.rows), "warmup", start.failure
    params: dict[str, np.ndarray] = {}
    outcome = "failed"  # of the quench to a loss
    if failure is None and start.theta is not None:
        params["start"] = start.theta
    try:
        if failure is None:
            phase = "noise"
            data = plan.source.load(start.seed)
            noisy = _noise(task, data, rows)
            failure = divergence(noisy)
            if failure is None:
                params["noise"] = noisy.params_
        if failure is None and plan.quench:
            phase = "quench"
            quenched = quench(noisy, data, task, rows)
            failure = divergence(quenched)
            if failure is None:
                params["quench"] = quenched.params_
        if failure is None and plan.quench_loss is not None:
            phase = "quench_loss"
            reached = quench_to_loss(noisy, data, task, rows)
            outcome, failure = reached.outcome, reached.failure
            if outcome == "reached":
                params["quench_loss"] = reached.theta
    except Exception as error:
        failure = _named(error)
    seconds = time.perf_counter() - began
    record = _record(task, phase=phase, failure=failure, seconds=seconds)
    if plan.quench_loss is not None:
        record["quench_loss"] = outcome
    kept = params if plan.keep_params else {}
    unit = Unit(_table(rows, record), record, kept)
    here = {**plan.provenance, **place(resolve_device(task.estimator.device))}
    if failure is None or failure[0] == "DivergenceError":
        content = {
            "rows": unit.rows.to_dict("list"),
            "record": unit.record,
            "provenance": here,
        }
        # Without the key it is not known where the phases ended.
        task.folder.write(content | ({"params": kept} if plan.keep_params else {}))
    return unit, here


def _record(
    task: UnitTask, *, phase: str, failure: tuple[str, str] | None, seconds: float
) -> dict[str, Any]:
    return {
        "method": task.label,
        "seed": task.start.seed,
        "status": "done" if failure is None else "failed",
        "phase": phase,
        "error": failure[0] if failure else "",
        "message": failure[1] if failure else "",
        "seconds": seconds,
    }


def _noise(task: UnitTask, data: Data, rows: list[dict[Any, Any]]) -> Any:
    """Run the method, append what was recorded, and return the fitted estimator."""
    start, plan = task.start, task.plan
    distance = _DistanceFrom(np.asarray(start.theta))
    settings = {
        "params_init": start.theta,
        "warmup": None,
        "metrics": guarded({**_metrics(task.estimator, plan), "distance": distance}),
        **task.folder.fits("noise"),
    }
    noisy = fit(task.estimator, start.seed, data, settings)
    found = history(noisy)
    found[0] |= start.ends
    rows += found
    if not noisy.diverged_ and len(found) > 1:
        found[-1] |= measure_at(noisy.risk_, plan.end_metrics, "end_metrics")
    return noisy


def _table(rows: list[dict[Any, Any]], record: dict[str, Any]) -> pd.DataFrame:
    table = pd.DataFrame(rows).assign(method=record["method"], seed=record["seed"])
    others = [name for name in table if name not in _KEYS]
    return table.reindex(columns=[*_KEYS, *others])


def _metrics(estimator: Any, plan: Plan) -> dict[str, Callable[..., Any]]:
    return {**(estimator.metrics or {}), **plan.metrics}


def _check_names(end_metrics: Mapping[str, Any], row: Mapping[Any, Any]) -> None:
    for name in end_metrics:
        if name in {*_KEYS, "distance", *row}:
            raise ValueError(
                "An end metric needs a name that the table does not use yet. "
                f"Got {name!r}."
            )


def _named(error: Exception) -> tuple[str, str]:
    return type(error).__name__, message(error)
