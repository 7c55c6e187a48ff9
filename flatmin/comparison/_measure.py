"""Measures on end points that are there, without running again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flatmin.comparison._fits import fit, measure_at, plain_descent
from flatmin.comparison._plan import Source
from flatmin.comparison._protocol import describe_settings
from flatmin.estimators._parameter_roles import parameters_for

__all__ = ["MeasureTask", "check_settings", "measure_seed"]

Key = tuple[str, str, int]  # phase, method, seed

# Parameters of the estimator that may differ from the stored ones: they decide where a
# point is measured, or nothing that a measure sees.
_FREE = parameters_for("device", "fit", "folder", "bookkeeping")

# How far a loss that is computed again, on another device too, may be from the stored
# one: relative to it, and to the largest of the seed.
_TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.float64: (1e-9, 1e-10)}


def check_settings(estimator: Any, stored: Mapping[str, Any]) -> None:
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


@dataclass(frozen=True)
class MeasureTask:
    """The end points of one seed, and what to measure there; travels to a worker."""

    seed: int
    source: Source
    points: Mapping[Key, np.ndarray]  # (D,) each
    losses: Mapping[Key, float]  # L there: other data or another network have another
    largest_loss: float  # of the seed
    measures: Mapping[str, Callable[..., Any]]
    n_threads: int


def measure_seed(task: MeasureTask) -> dict[Key, dict[str, float]]:
    """Return measures at end points of one seed.

    Parameters
    ----------
    task : MeasureTask

    Returns
    -------
    dict of dict

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
    relative, absolute = _TOLERANCES[risk.dtype]
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
    return found
