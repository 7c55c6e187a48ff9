"""Fits of a unit, and what is measured where they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

__all__ = ["Data", "divergence", "fit", "measure_at", "plain_descent"]

Data = tuple[Any, Any, dict[str, Any]]  # X, y, and the test data for fit


def fit(estimator: Any, seed: int, data: Data, settings: Mapping[str, Any]) -> Any:
    """Return a fitted clone with other settings.

    Parameters
    ----------
    estimator : estimator
    seed : int
    data : tuple
        Of :meth:`Source.load`.
    settings : mapping of str to object

    Returns
    -------
    estimator
        With its history until then, if it diverged.
    """
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


def plain_descent(theta: np.ndarray, n_iter: int) -> dict[str, Any]:
    """Return the settings of gradient descent on all examples, from a point.

    Parameters
    ----------
    theta : ndarray of shape (D,)
    n_iter : int

    Returns
    -------
    dict
    """
    return {
        "method": "gd",
        "method_params": None,
        "max_iter": n_iter,
        "params_init": theta,
        "warmup_iter": 0,
        "gradient_batch_size": None,
        "optimizer": "sgd",
        "optimizer_params": None,
        "callbacks": None,
        "callbacks_params": None,
        "checkpoint_dir": None,
        "checkpoint_every": None,
    }


def divergence(model: Any) -> tuple[str, str] | None:
    """Return error and message of a fit that diverged.

    Parameters
    ----------
    model : estimator
        Fitted.

    Returns
    -------
    tuple of str or None
    """
    return ("DivergenceError", model.diverged_) if model.diverged_ else None


def measure_at(
    risk: Any, measures: Mapping[str, Callable[..., Any]], title: str
) -> dict[str, float]:
    """Return measures at a risk's own θ, with the standard errors of those with one.

    Parameters
    ----------
    risk : EmpiricalRisk
    measures : mapping of str to callable
    title : str
        What the argument is called that they came by.

    Returns
    -------
    dict of str to float

    Raises
    ------
    TypeError
        If one gives no number.
    """
    theta = risk.params()
    found = {}
    for name, measure in measures.items():
        value = measure(risk, theta.clone())
        try:
            found[name] = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{title}[{name!r}] must return a number. Got {value!r}."
            ) from error
        if hasattr(value, "stderr"):
            found[f"{name}_stderr"] = float(value.stderr)
    return found
