"""Fitted attributes that are set all at once, or not at all."""

from __future__ import annotations

from typing import Any

__all__ = ["take_over", "twin_of"]


def twin_of(estimator: Any) -> Any:
    """Return an object with the same attributes, to learn in the estimator's place.

    An interrupt, or an error, in the midst of it leaves the estimator as it was.

    Parameters
    ----------
    estimator : object

    Returns
    -------
    object
        Of the same class; shares the values.
    """
    twin = object.__new__(type(estimator))
    vars(twin).update(vars(estimator))
    return twin


def take_over(estimator: Any, twin: Any) -> None:
    """Set on an estimator what its twin has learnt.

    Parameters
    ----------
    estimator : object
    twin : object
        From :func:`twin_of`.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> ridge = Ridge()
    >>> twin = twin_of(ridge)
    >>> twin.coef_, twin.intercept_ = [1.0], 0.5
    >>> take_over(ridge, twin)
    >>> ridge.coef_, ridge.intercept_
    ([1.0], 0.5)
    """
    own = vars(estimator)
    learned = {k: v for k, v in vars(twin).items() if k not in own or own[k] is not v}
    # One call into C: Ctrl-C is seen between two instructions of Python only.
    own.update(learned)
