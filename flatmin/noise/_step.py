"""What a step knows of itself: for laws that need the iteration or η."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["Step", "declares_step", "step_for"]


@dataclass(frozen=True)
class Step:
    """The step of a run that a noisy gradient is for.

    Attributes
    ----------
    iteration : int
        Steps of this run before it: 0 where the noise begins. Refreshes count with it.
    lr : float
        η of this step, after any schedule.

    Examples
    --------
    >>> from flatmin.noise import Step
    >>> Step(iteration=3, lr=0.1)
    Step(iteration=3, lr=0.1)
    """

    iteration: int
    lr: float


def declares_step(method: Callable[..., Any]) -> bool:
    """Return whether a method has a parameter ``step``.

    Parameters
    ----------
    method : callable

    Returns
    -------
    bool
    """
    return _has_step(getattr(method, "__func__", method))


def step_for(method: Callable[..., Any], step: Step | None) -> dict[str, Step | None]:
    """Return the keyword that a law's method is to be called with, if any.

    Parameters
    ----------
    method : callable
        ``refresh``, ``noisy_gradient`` or ``refreshed_gradient`` of a law.
    step : Step or None

    Returns
    -------
    dict
        ``{"step": step}`` where the method declares it, else nothing.

    Examples
    --------
    >>> from flatmin.noise import GD, GLDConst, Step, step_for
    >>> step_for(GD().refresh, Step(3, 0.1)), step_for(GLDConst().refresh, Step(3, 0.1))
    ({}, {'step': Step(iteration=3, lr=0.1)})
    """
    return {"step": step} if declares_step(method) else {}


@lru_cache(maxsize=256)  # looked up in every iteration
def _has_step(function: Callable[..., Any]) -> bool:
    return "step" in inspect.signature(function).parameters
