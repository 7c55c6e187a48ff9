"""Fitted attributes that are set all at once, or not at all."""

from __future__ import annotations

from typing import Any

__all__ = ["adopt_attributes", "scratch_copy"]


def scratch_copy(estimator: Any) -> Any:
    """Return an object with the same attributes, which is fitted in the place of one.

    An interrupt or an error during the fit then leaves the estimator as it was.

    Parameters
    ----------
    estimator : object

    Returns
    -------
    object
        Of the same class; shares the values.
    """
    copy = object.__new__(type(estimator))
    vars(copy).update(vars(estimator))
    return copy


def adopt_attributes(estimator: Any, copy: Any) -> None:
    """Set on an estimator all attributes that its copy has learnt, and no others.

    Parameters
    ----------
    estimator : object
    copy : object
        From :func:`scratch_copy`.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> ridge = Ridge()
    >>> copy = scratch_copy(ridge)
    >>> copy.coef_, copy.intercept_ = [1.0], 0.5
    >>> adopt_attributes(ridge, copy)
    >>> ridge.coef_, ridge.intercept_
    ([1.0], 0.5)
    """
    own = vars(estimator)
    new = {k: v for k, v in vars(copy).items() if k not in own or own[k] is not v}
    gone = own.keys() - vars(copy).keys()
    # One call into C: Ctrl-C is seen between two instructions of Python only.
    own.update(new)
    for name in gone:  # such as feature_names_in_, of an X that had names
        del own[name]
