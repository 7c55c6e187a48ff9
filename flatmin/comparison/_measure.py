"""Measures on end points that are there, without running again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from flatmin._utils.placement import resolve_device
from flatmin.comparison._cluster import is_cluster, work
from flatmin.comparison._fits import fit, measure_at, plain_descent
from flatmin.comparison._inputs import resolve_data
from flatmin.comparison._methods import check_estimator
from flatmin.comparison._plan import RiskSource
from flatmin.comparison._protocol import describe_settings
from flatmin.comparison._provenance import origin, place
from flatmin.estimators._parameter_roles import parameters_for

__all__ = ["TOLERANCES", "measure_ends", "resolve_source"]

Key = tuple[str, str, int]  # phase, method, seed

# Parameters of the estimator that may differ from the stored ones: they decide where a
# point is measured, or nothing that a measure sees.
_FREE = parameters_for("device", "fit", "folder", "bookkeeping")

# How far a loss that is computed again, on another device too, may be from the stored
# one: relative to it, and to the largest of the seed.
TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.float64: (1e-9, 1e-10)}


def _check_settings(estimator: Any, stored: Mapping[str, Any]) -> None:
    """Raise unless an estimator is the one that a protocol describes.

    Parameters
    ----------
    estimator : estimator
    stored : mapping of str to object
        Of the protocol.

    Raises
    ------
    ValueError
        With what differs.
    """
    own = describe_settings(estimator)
    different = [
        f"{name}={own.get(name)!r}, stored {stored.get(name)!r}"
        for name in sorted(((own.keys() & stored.keys()) | {"training"}) - _FREE)
        if own.get(name) != stored.get(name)
    ]
    if different:
        raise ValueError(
            "estimator must have the settings that the comparison was run with. Got "
            f"{'; '.join(different)}."
        )


def resolve_source(
    stored: RiskSource | None,
    settings: Mapping[str, Any],
    *,
    X: Any,
    y: Any,
    estimator: Any,
) -> RiskSource:
    """Return data and estimator: those passed, or else those of the comparison.

    Parameters
    ----------
    stored : RiskSource or None
        What the result holds; one that was read from a file holds none.
    settings : mapping of str to object
        Of the estimator, in the protocol.
    X, y : array-like, data set, callable or None
    estimator : estimator or None

    Returns
    -------
    RiskSource

    Raises
    ------
    ValueError
        If one is missing, or the estimator has other settings.
    """
    if X is None and y is not None:
        raise ValueError("y comes with X. Got X=None.")
    if estimator is not None:
        check_estimator(estimator)
        _check_settings(estimator, settings)
    elif stored is not None:
        estimator = stored.estimator
    data = None if stored is None else stored.data
    if X is not None:
        data = resolve_data(X, y, None, None, estimator=estimator)
    if data is None or estimator is None:
        missing = "the data" if data is None else "the estimator"
        raise ValueError(
            "A result that was read from a file holds neither data nor estimator: "
            "pass X and y, or the function of the seed, and estimator. "
            f"Got none for {missing}."
        )
    return RiskSource(data, estimator)


def measure_ends(
    ends: Any,
    params: Callable[[str, int, str], np.ndarray],
    source: RiskSource,
    *,
    largest_losses: Any,
    measures: Mapping[str, Callable[..., Any]],
    n_threads: int,
    n_jobs: int | None,
) -> pd.DataFrame:
    """Return measures where phases ended, a row for each.

    Parameters
    ----------
    ends : pandas.Series
        Losses, indexed by phase, method and seed.
    params : callable
        Gives θ of (method, seed, phase).
    source : RiskSource
    largest_losses : pandas.Series
        Of each seed.
    measures : mapping of str to callable
    n_threads : int
    n_jobs : int or None

    Returns
    -------
    pandas.DataFrame
    """
    if not is_cluster():
        resolve_device(source.estimator.device)  # an error here, and not in a worker
    tasks = []
    for seed in dict.fromkeys(int(key[2]) for key in ends.index):
        losses = ends[ends.index.get_level_values("seed") == seed].to_dict()
        tasks.append(
            _MeasureTask(
                seed,
                source,
                {key: params(key[1], seed, key[0]) for key in losses},
                losses,
                largest_loss=float(largest_losses[seed]),
                measures=measures,
                n_threads=n_threads,
            )
        )
    found: dict[Key, dict[str, float]] = {}
    places: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    try:
        for some, where in work(_measure_seed, tasks, n_jobs, common="source"):
            found |= some
            if where not in places:
                places.append(where)
    finally:
        torch.set_num_threads(before)
    frame = pd.DataFrame([found[key] for key in ends.index], index=ends.index)
    # On a cluster seeds may be measured on machines of several kinds.
    where = places[0] if len(places) == 1 else {"places": places}
    frame.attrs["provenance"] = origin() | where
    return frame


@dataclass(frozen=True)
class _MeasureTask:
    """The end points of one seed, and what to measure there; travels to a worker."""

    seed: int
    source: RiskSource
    points: Mapping[Key, np.ndarray]  # (D,) each
    losses: Mapping[Key, float]  # L there: other data or another network have another
    largest_loss: float  # of the seed
    measures: Mapping[str, Callable[..., Any]]
    n_threads: int


def _measure_seed(
    task: _MeasureTask,
) -> tuple[dict[Key, dict[str, float]], dict[str, Any]]:
    """Return measures at end points of one seed, and where they were taken.

    Parameters
    ----------
    task : _MeasureTask

    Returns
    -------
    dict of dict, dict

    Raises
    ------
    ValueError
        If the loss at a point is not what was stored, or the estimator's.
    TypeError
        If a measure gives no number.
    """
    torch.set_num_threads(task.n_threads)
    first = next(iter(task.points.values()))
    # Without iterations of its own a fit makes the risk that a run has seen.
    settings = {
        **plain_descent(first, 0),
        "metrics": None,
        "memory": None,
    }
    X, y, _ = task.source.load(task.seed)
    risk = fit(task.source.estimator, task.seed, (X, y, {}), settings).risk_
    relative, absolute = TOLERANCES[risk.dtype]
    found = {}
    for key, theta in task.points.items():
        risk.set_params(torch.as_tensor(theta.copy(), device=risk.device))
        loss = float(risk.value(risk.params()))
        stored = task.losses[key]
        bound = relative * abs(stored) + absolute * task.largest_loss
        if not abs(loss - stored) <= bound:
            phase, method, _ = key
            raise ValueError(
                f"The data and the estimator must be those of the comparison. The loss "
                f"of {method!r} with seed {task.seed} at the end of {phase!r} was "
                f"{stored:.6g}, and is {loss:.6g} with these."
            )
        found[key] = measure_at(risk, task.measures, "measures")
    return found, place(risk.device)
