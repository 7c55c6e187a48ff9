"""Metrics, functions of (risk, θ) that a user gives, and what becomes of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from flatmin._utils.messages import message, shown
from flatmin._utils.names import check_text
from flatmin.risk import EmpiricalRisk

__all__ = ["Metric", "check_metrics", "measure_metrics"]

Metric = Callable[[EmpiricalRisk, Tensor], Any]


def check_metrics(
    metrics: Mapping[str, Any],
    *,
    table: str,
    taken: Iterable[str],
    title: str = "metrics",
) -> None:
    """Raise unless these are names, none of them taken, and functions.

    Parameters
    ----------
    metrics : mapping of str to callable
    table : str
        What they are written into, for the message.
    taken : iterable of str
        Columns that it has besides.
    title : str, default="metrics"
        What the argument is called, for the message.

    Raises
    ------
    ValueError
        If a metric has the name of a column.
    TypeError
        If it cannot be called.
    """
    for name, metric in metrics.items():
        check_text(f"a name in {title}", name)
        if name in taken:
            raise ValueError(
                f"{title} need names that {table} does not use yet. Got {name!r}."
            )
        if not callable(metric):
            raise TypeError(
                f"{title}[{name!r}] must be a function of (risk, theta). "
                f"Got {metric!r}."
            )


def measure_metrics(
    metrics: Mapping[str, Metric],
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    iteration: int,
    is_first: bool,
    undefined: set[str],
) -> dict[str, float]:
    """Measure a point.

    Parameters
    ----------
    metrics : mapping of str to callable
    risk : EmpiricalRisk
    theta : Tensor of shape (D,)
    iteration : int
        For the warning.
    is_first : bool
        Whether nothing is lost yet by an error of a metric.
    undefined : set of str
        Metrics that have been warned about; grows.

    Returns
    -------
    dict of str to float
        NaN where a metric is not defined (ValueError, ArithmeticError, LinAlgError).

    Raises
    ------
    TypeError
        If a metric gives no number.
    Exception
        What a metric raises at the first point.
    """
    return {
        name: _measure(
            name,
            metric,
            risk,
            theta.clone(),  # θ moves in place
            iteration=iteration,
            is_first=is_first,
            undefined=undefined,
        )
        for name, metric in metrics.items()
    }


def _measure(
    name: str,
    metric: Metric,
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    iteration: int,
    is_first: bool,
    undefined: set[str],
) -> float:
    try:
        value = metric(risk, theta)
    except (ValueError, ArithmeticError, LinAlgError) as error:
        if is_first:
            raise
        if name not in undefined:
            undefined.add(name)
            warnings.warn(
                f"metrics[{name!r}] is NaN where it is not defined, at first in "
                f"iteration {iteration}: {message(error)}",
                stacklevel=2,
            )
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"metrics[{name!r}] must return a number. Got {shown(value)}."
        ) from error
