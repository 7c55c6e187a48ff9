"""Fits of a unit, and what is measured where they end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from flatmin._utils.messages import message, shown
from flatmin.estimators import NoisyDiffusionClassifier
from flatmin.estimators._parameter_roles import parameters_for

__all__ = [
    "TEST_COLUMNS",
    "Data",
    "divergence",
    "fit",
    "guarded",
    "history",
    "measure_at",
    "plain_descent",
]

Data = tuple[Any, Any, dict[str, Any]]  # X, y, and the test data for fit

# fit looks at the test data as its validation data, and names their columns after that.
TEST_COLUMNS = {"valid_loss": "test_loss", "valid_score": "test_score"}


@dataclass
class _Guarded:
    """A metric that is NaN where it is not defined in the first row of a fit.

    That row raises what a metric raises, since all else is lost if a metric is no good.
    But the warm-up of a comparison has tried them out, and the fits that follow begin
    where one has ended: a point of a run like others, at which a measure may be 0/0.
    """

    name: str
    metric: Callable[..., Any]
    called: bool = False

    def __call__(self, risk: Any, theta: Tensor) -> Any:
        is_first, self.called = not self.called, True
        try:
            return self.metric(risk, theta)
        except (ValueError, ArithmeticError, LinAlgError) as error:
            if not is_first:
                raise  # the fit ends with it
            warnings.warn(
                f"metrics[{self.name!r}] is NaN in a row where a fit of the comparison "
                f"begins, since it is not defined there: {message(error)}",
                stacklevel=2,
            )
            return math.nan


def guarded(metrics: Mapping[str, Callable[..., Any]]) -> dict[str, _Guarded]:
    """Return metrics for a fit that begins where another one has ended.

    Parameters
    ----------
    metrics : mapping of str to callable
        Also what this has returned for another fit.

    Returns
    -------
    dict
    """
    plain = {n: m.metric if isinstance(m, _Guarded) else m for n, m in metrics.items()}
    return {name: _Guarded(name, metric) for name, metric in plain.items()}


def fit(estimator: Any, seed: int, data: Data, settings: Mapping[str, Any]) -> Any:
    """Return a fitted clone with other settings.

    Parameters
    ----------
    estimator : estimator
    seed : int
    data : tuple
        Of :meth:`RiskSource.load`.
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


def history(model: Any) -> list[dict[Any, Any]]:
    """Return the rows of a fit, with the columns that the table of a comparison has.

    Parameters
    ----------
    model : estimator
        Fitted, or diverged.

    Returns
    -------
    list of dict
    """
    rows: list[dict[Any, Any]] = model.history_.to_dict("records")
    return [
        {TEST_COLUMNS.get(name, name): value for name, value in row.items()}
        for row in rows
    ]


def plain_descent(theta: np.ndarray, n_iter: int) -> dict[str, Any]:
    """Return the settings of gradient descent on all examples, from a point.

    They replace all that decides how a run goes on, but for the learning rate and the
    interval of recording, which stay those of the estimator.

    Parameters
    ----------
    theta : ndarray of shape (D,)
    n_iter : int

    Returns
    -------
    dict
    """
    defaults = NoisyDiffusionClassifier().get_params(deep=False)
    names = parameters_for("run", "folder") - {"lr", "record_every"}
    return {
        **{name: defaults[name] for name in names},
        "method": "gd",
        "optimizer": "sgd",
        "max_iter": n_iter,
        "params_init": theta,
        "warmup": None,
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
                f"{title}[{name!r}] must return a number. Got {shown(value)}."
            ) from error
        if hasattr(value, "stderr"):
            found[f"{name}_stderr"] = float(value.stderr)
    return found
