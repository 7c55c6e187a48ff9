"""What travels to a worker, and what comes back: tasks, starts and units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flatmin.comparison._checkpoints import UnitFolder
from flatmin.comparison._plan import Plan

__all__ = ["Outcome", "Start", "StartTask", "Unit", "UnitTask"]


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
class StartTask:
    """The warm-up of one seed, which all methods share."""

    seed: int
    plan: Plan
    memory: Any  # None, str or joblib.Memory; the estimator is given it
    folder: UnitFolder


@dataclass(frozen=True)
class UnitTask:
    """One method with one seed."""

    label: str
    estimator: Any  # with the method's settings
    start: Start
    plan: Plan
    folder: UnitFolder


@dataclass(frozen=True)
class Unit:
    """What came of one method with one seed."""

    rows: pd.DataFrame
    # method, seed, status, phase, error, message, seconds, where asked for quench_loss
    record: dict[str, Any]
    params: dict[str, np.ndarray]  # where phases ended, (D,) each; none unless kept


Outcome = tuple[Unit, dict[str, Any]]  # with its provenance
