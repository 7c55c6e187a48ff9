"""The part of the examples that ``early_stopping`` looks at and does not train on."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.model_selection import train_test_split

from flatmin._utils.arrays import to_array
from flatmin._utils.messages import first_line
from flatmin.estimators._examples import Examples

__all__ = ["hold_out"]


def hold_out(
    estimator: Any,
    fraction: float,
    examples: Examples,
    sample_weight: Any,
    *,
    seed: int,
) -> tuple[Examples, np.ndarray | None, Examples]:
    """Split off a part, for a classifier with its share of each class.

    Parameters
    ----------
    estimator : estimator
    fraction : float
        Of the examples.
    examples : Examples
    sample_weight : array-like of shape (n_samples,) or None
    seed : int

    Returns
    -------
    examples : Examples
        What is left to train on.
    sample_weight : ndarray of shape (n,) or None
        Its weights.
    held_out : Examples

    Raises
    ------
    ValueError
        If the data cannot be split so.
    """
    if examples.streamed:
        raise ValueError(
            "early_stopping can split arrays only. Got a data set: pass X_val, which "
            "is looked at in place of a part of it."
        )
    if estimator.warm_start and not isinstance(estimator.random_state, Integral):
        raise ValueError(
            "early_stopping with warm_start needs an integer random_state: otherwise "
            "each fit would hold out other examples than the last one. Got "
            f"random_state={estimator.random_state!r}; or pass X_val."
        )
    n = len(examples.y)
    by_class = is_classifier(estimator) and examples.y.ndim == 1
    try:
        left, out = train_test_split(
            np.arange(n),
            test_size=fraction,
            random_state=seed,
            stratify=examples.y if by_class else None,
        )
    except ValueError as error:
        raise ValueError(
            f"early_stopping holds out a validation_fraction of {fraction:g} of {n} "
            f"examples, of each class alike. {first_line(error)} Pass X_val and y_val, "
            "or another validation_fraction."
        ) from error
    if min(len(left), len(out)) < 2:
        raise ValueError(
            "early_stopping needs two examples to train on and two to look at. Got "
            f"{len(left)} and {len(out)} by validation_fraction={fraction:g} of {n}."
        )
    weights = None
    if sample_weight is not None:
        weights = to_array("sample_weight", sample_weight, (n,))[left]
    return examples.take(left), weights, examples.take(out)
