"""The sharpness measures by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch

from flatmin._utils.callables import check_callable
from flatmin._utils.messages import shown
from flatmin._utils.registry import enter
from flatmin.linalg import Estimate
from flatmin.measures._ascent_sharpness import asam_sharpness, sam_sharpness
from flatmin.measures._batch_sharpness import batch_sharpness
from flatmin.measures._curvature_sharpness import max_eigenvalue, trace_sharpness
from flatmin.measures._fisher_rao import fisher_rao_norm
from flatmin.measures._sharpness import adaptive_expected_sharpness, expected_sharpness

__all__ = [
    "BUILT_IN",
    "SHARPNESS_MEASURES",
    "as_estimate",
    "register_measure",
]

# (risk, theta, **options) -> Estimate, float or tensor of one number.
Measure: TypeAlias = Callable[..., Any]
Registered = TypeVar("Registered", bound=Measure)

#: Each is a function (risk, theta, **options); small is flat.
SHARPNESS_MEASURES: dict[str, Measure] = {
    "expected": expected_sharpness,
    "trace": trace_sharpness,
    "max_eigenvalue": max_eigenvalue,
    "sam": sam_sharpness,
    "asam": asam_sharpness,
    "adaptive_expected": adaptive_expected_sharpness,
    "fisher_rao": fisher_rao_norm,
    "batch": batch_sharpness,
}

# What a user registers later is not in it.
BUILT_IN = frozenset(SHARPNESS_MEASURES.values())


def register_measure(measure: Registered, name: str | None = None) -> Registered:
    """Enter a sharpness of one's own in ``SHARPNESS_MEASURES``.

    It is then a ``measure=`` of :class:`flatmin.SharpnessScorer` by that name; the
    function itself is one without being registered. Also a decorator.

    Parameters
    ----------
    measure : callable
        ``measure(risk, theta, **options)`` returns one number, or an
        :class:`~flatmin.linalg.Estimate`; small is flat. An option ``rng`` is given a
        generator. A pickled scorer brings it to worker processes: they must be able to
        import its module, unless it is of a notebook or a script and is written whole.
    name : str, default=None
        None is the function's own.

    Returns
    -------
    callable
        The same function.

    Raises
    ------
    TypeError
        If it cannot be called with a risk and θ.
    ValueError
        If another measure has its name.

    Examples
    --------
    >>> @register_measure
    ... def squared_norm(risk, theta):
    ...     return theta.square().sum()
    >>> sorted(SHARPNESS_MEASURES)[-2:]
    ['squared_norm', 'trace']
    >>> del SHARPNESS_MEASURES["squared_norm"]
    """
    check_callable("measure", measure, "risk", "theta")
    if name is None:
        name = getattr(measure, "__name__", None)
    own: Measure = measure
    enter("measure", SHARPNESS_MEASURES, name, own)
    return measure


def as_estimate(title: str, value: Any) -> Estimate:
    """Return what a measure gave as an estimate.

    Parameters
    ----------
    title : str
        What the measure is called.
    value : object

    Returns
    -------
    Estimate

    Raises
    ------
    TypeError
        If it is no single number.
    FloatingPointError
        If it is NaN or infinite.
    """
    estimate = value
    if not isinstance(value, Estimate) or value.value.ndim:
        try:
            # A truth value is no size, and text that reads as a number is text.
            if isinstance(value, bool | str | bytes) or getattr(value, "ndim", 0) > 0:
                raise TypeError
            number, stderr = float(value), float(getattr(value, "stderr", 0.0))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(
                f"{title} must return one number. Got {shown(value)}."
            ) from error
        both = torch.tensor([number, stderr], dtype=torch.float64)
        cost = value.n_matvecs if hasattr(value, "n_matvecs") else 0
        estimate = Estimate(both[0], both[1], cost)
    if not math.isfinite(float(estimate)):
        raise FloatingPointError(
            f"{title} must return a finite number. Got {float(estimate)}."
        )
    return estimate
