"""What a worker does: a seed's warm-up, and a method's run from where it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from flatmin._utils.placement import resolve_device
from flatmin.comparison._checkpoints import UnitFolder
from flatmin.comparison._provenance import provenance

__all__ = ["Plan", "Start", "Unit", "run_unit", "warm_up"]

_KEYS = ("method", "seed", "iteration", "phase")


@dataclass(frozen=True)
class Plan:
    """What all units have in common; travels to the workers."""

    data: Callable[[int], tuple[Any, ...]] | tuple[Any, ...]
    metrics: Mapping[str, Callable[..., Any]]
    end_metrics: Mapping[str, Callable[..., Any]]
    quench: int
    quench_lr: float | None
    n_threads: int

    def load(self, seed: int) -> tuple[Any, Any, dict[str, Any]]:
        """Return X, y and what fit is told of the test data."""
        data = self.data(seed) if callable(self.data) else self.data
        if not isinstance(data, tuple) or len(data) not in (2, 4):
            raise ValueError(
                "A function of the seed must return (X, y) or (X, y, X_test, y_test). "
                f"Got {type(data).__name__}"
                + (f" of length {len(data)}." if isinstance(data, tuple) else ".")
            )
        X, y, *test = data
        return X, y, dict(zip(("X_val", "y_val"), test, strict=False))


@dataclass(frozen=True)
class Start:
    """Where a seed's warm-up ended."""

    seed: int
    theta: np.ndarray | None  # (D,); None if the warm-up failed
    rows: list[dict[Any, Any]]
    ends: dict[str, float]  # end metrics
    failure: tuple[str, str] | None  # error and message
    seconds: float


@dataclass(frozen=True)
class Unit:
    """What came of one method with one seed."""

    rows: pd.DataFrame
    record: dict[str, Any]  # method, seed, status, phase, error, message, seconds


@dataclass(frozen=True)
class _DistanceFrom:
    """‖θ - θ₀‖, a metric."""

    theta: np.ndarray  # (D,)

    def __call__(self, risk: Any, theta: torch.Tensor) -> torch.Tensor:
        start = torch.as_tensor(self.theta, dtype=theta.dtype, device=theta.device)
        return torch.linalg.vector_norm(theta - start)


def warm_up(
    estimator: Any,
    seed: int,
    plan: Plan,
    memory: Any,
    folder: UnitFolder,
) -> Start:
    """Run the part that all methods of a seed share, or take it from its folder.

    Parameters
    ----------
    estimator : estimator
    seed : int
    plan : Plan
    memory : None, str or joblib.Memory
        What the estimator is given.
    folder : UnitFolder
        Keeps it.

    Returns
    -------
    Start

    Raises
    ------
    TypeError
        The estimator's or a metric's.
    ValueError
        The estimator's, about its settings or the data, which no method could use.
    """
    found = folder.read()
    if found is not None:
        return Start(**found)
    torch.set_num_threads(plan.n_threads)
    began = time.perf_counter()
    # Without iterations of its own a fit is its warm-up, and tries out the metrics.
    settings = {
        "method": "gd",
        "method_params": None,
        "max_iter": 0,
        "metrics": _metrics(estimator, plan) or None,
        "memory": memory,
        **folder.fits("fit"),
    }
    with ExitStack() as held:
        try:
            held.enter_context(folder.begun())
            model = _fit(estimator, seed, plan.load(seed), settings)
            rows = model.history_.to_dict("records")
            _check_names(plan.end_metrics, rows[-1])
            ends = _measure(model, plan.end_metrics)
        except (TypeError, ValueError):
            raise
        except Exception as error:
            seconds = time.perf_counter() - began
            return Start(seed, None, [], {}, _named(error), seconds)
        start = Start(
            seed,
            model.params_,
            [
                row | {"iteration": row["iteration"] - rows[-1]["iteration"]}
                for row in rows
                if row["phase"] == "warmup"
            ],
            ends,
            _divergence(model),
            time.perf_counter() - began,
        )
        folder.write(vars(start))
    return start


def run_unit(
    estimator: Any, label: str, start: Start, plan: Plan, folder: UnitFolder
) -> Unit:
    """Run one method from a start, and quench it.

    Parameters
    ----------
    estimator : estimator
        With the method's settings.
    label : str
    start : Start
    plan : Plan
    folder : UnitFolder
        Keeps what comes out, unless that is an error of which another time may be
        free.

    Returns
    -------
    Unit
        Also of a method that diverged, with the rows until then, or raised, with those
        of the fits that had ended.
    """
    torch.set_num_threads(plan.n_threads)
    began = time.perf_counter()
    rows, phase, failure = list(start.rows), "warmup", start.failure
    with ExitStack() as held:
        try:
            held.enter_context(folder.begun())
            if failure is None:
                phase = "noise"
                data = plan.load(start.seed)
                noisy = _noise(estimator, start, data, plan, folder, rows)
                failure = _divergence(noisy)
            if failure is None and plan.quench:
                phase = "quench"
                failure = _quench(noisy, data, plan, folder, rows)
        except Exception as error:
            failure = _named(error)
        unit = Unit(
            _table(rows, label, start.seed),
            {
                "method": label,
                "seed": start.seed,
                "status": "done" if failure is None else "failed",
                "phase": phase,
                "error": failure[0] if failure else "",
                "message": failure[1] if failure else "",
                "seconds": time.perf_counter() - began,
            },
        )
        if failure is None or failure[0] == "DivergenceError":
            folder.write(
                {
                    "rows": unit.rows.to_dict("list"),
                    "record": unit.record,
                    "provenance": provenance(resolve_device(estimator.device)),
                }
            )
    return unit


def _noise(
    estimator: Any,
    start: Start,
    data: tuple[Any, Any, dict[str, Any]],
    plan: Plan,
    folder: UnitFolder,
    rows: list[dict[Any, Any]],
) -> Any:
    """Run the method, append what was recorded, and return the fitted estimator."""
    distance = _DistanceFrom(np.asarray(start.theta))
    settings = {
        "params_init": start.theta,
        "warmup_iter": 0,
        "metrics": {**_metrics(estimator, plan), "distance": distance},
        **folder.fits("noise"),
    }
    noisy = _fit(estimator, start.seed, data, settings)
    found = noisy.history_.to_dict("records")
    found[0] |= start.ends
    rows += found
    if not noisy.diverged_ and len(found) > 1:
        found[-1] |= _measure(noisy, plan.end_metrics)
    return noisy


def _quench(
    noisy: Any,
    data: tuple[Any, Any, dict[str, Any]],
    plan: Plan,
    folder: UnitFolder,
    rows: list[dict[Any, Any]],
) -> tuple[str, str] | None:
    """Go on without noise, append what was recorded, and return a failure."""
    settings = {
        "method": "gd",
        "method_params": None,
        "lr": noisy.lr if plan.quench_lr is None else plan.quench_lr,
        "max_iter": plan.quench,
        "params_init": noisy.params_,
        "gradient_batch_size": None,
        "optimizer": "sgd",
        "optimizer_params": None,
        "callbacks": None,
        "callbacks_params": None,
        "metrics": noisy.metrics,  # themselves, not what clone makes of them
        **folder.fits("quench"),
    }
    quenched = _fit(noisy, noisy.random_state, data, settings)
    found = quenched.history_.assign(phase="quench")
    found["iteration"] += noisy.n_iter_
    found = found.to_dict("records")
    rows += found
    if not quenched.diverged_:
        found[-1] |= _measure(quenched, plan.end_metrics)
    return _divergence(quenched)


def _fit(
    estimator: Any,
    seed: int,
    data: tuple[Any, Any, dict[str, Any]],
    settings: dict[str, Any],
) -> Any:
    X, y, test = data
    model = clone(estimator).set_params(
        random_state=seed,
        # A run that diverges then has a history up to there.
        on_divergence="stop",
        store_data=True,
        warm_start=False,
        verbose=False,
    )
    model.set_params(**settings)
    # Where the caller makes warnings errors, this one comes after the model is whole.
    with suppress(ConvergenceWarning):
        model.fit(X, y, **test)
    return model


def _divergence(model: Any) -> tuple[str, str] | None:
    return ("DivergenceError", model.diverged_) if model.diverged_ else None


def _table(rows: list[dict[Any, Any]], label: str, seed: int) -> pd.DataFrame:
    table = pd.DataFrame(rows).assign(method=label, seed=seed)
    others = [name for name in table if name not in _KEYS]
    return table.reindex(columns=[*_KEYS, *others])


def _metrics(estimator: Any, plan: Plan) -> dict[str, Callable[..., Any]]:
    return {**(estimator.metrics or {}), **plan.metrics}


def _measure(model: Any, metrics: Mapping[str, Callable[..., Any]]) -> dict[str, float]:
    """Return the end metrics, with the standard errors of those that have one."""
    theta = model.risk_.params()
    found = {}
    for name, metric in metrics.items():
        value = metric(model.risk_, theta.clone())
        try:
            found[name] = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"end_metrics[{name!r}] must return a number. Got {value!r}."
            ) from error
        if hasattr(value, "stderr"):
            found[f"{name}_stderr"] = float(value.stderr)
    return found


def _check_names(end_metrics: Mapping[str, Any], row: Mapping[Any, Any]) -> None:
    for name in end_metrics:
        if name in {*_KEYS, "distance", *row}:
            raise ValueError(
                "An end metric needs a name that the table does not use yet. "
                f"Got {name!r}."
            )


def _named(error: Exception) -> tuple[str, str]:
    return type(error).__name__, str(error)
