"""From what a user has to an analyzer with data; its ``risk_`` is what is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from sklearn.exceptions import NotFittedError

from flatmin._utils.names import check_known
from flatmin.analysis import CurvatureAnalyzer, NoiseCovarianceAnalyzer

__all__ = ["fit_analyzer"]

Analyzer = TypeVar("Analyzer", CurvatureAnalyzer, NoiseCovarianceAnalyzer)


def fit_analyzer(
    kind: type[Analyzer],
    estimator: Any,
    data: tuple[Any, Any, Any],
    risk_options: Mapping[str, Any],
    **settings: Any,
) -> Analyzer:
    """Make an analyzer, and fix its data.

    Parameters
    ----------
    kind : CurvatureAnalyzer or NoiseCovarianceAnalyzer
        The class.
    estimator : flatmin estimator, skorch net or torch.nn.Module
    data : tuple of (X, y, sample_weight)
        X is None for the training data that a flatmin estimator still holds.
    risk_options : mapping of str to object
        What a Display was given as further arguments: how the risk is made.
    **settings
        Of the analyzer.

    Returns
    -------
    CurvatureAnalyzer or NoiseCovarianceAnalyzer
        Fitted.

    Raises
    ------
    ValueError
        If an option is none of a risk.
    NotFittedError
        If the model is not fitted, or there are no data.
    """
    analyzer = kind(estimator, **settings)
    for name in risk_options:
        check_known("argument", name, analyzer._settings().keys() - settings.keys())
    analyzer.set_params(**risk_options)
    X, y, sample_weight = data
    try:
        return analyzer.fit(X, y, sample_weight)
    except NotFittedError as error:
        if X is not None:
            raise
        raise NotFittedError(
            "A Display needs a fitted model and data. Got X=None and a model without "
            "training data; pass X and y to draw it on. The analyzer says: "
            f"{error}"
        ) from error
