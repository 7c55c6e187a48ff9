"""From what a user has to an analyzer with data; its ``risk_`` is what is drawn."""

from __future__ import annotations

from typing import Any, TypeVar

from sklearn.exceptions import NotFittedError

from flatmin.analysis import CurvatureAnalyzer, NoiseCovarianceAnalyzer

__all__ = ["fit_analyzer"]

Analyzer = TypeVar("Analyzer", CurvatureAnalyzer, NoiseCovarianceAnalyzer)


def fit_analyzer(
    analyzer: Analyzer, X: Any, y: Any, sample_weight: Any = None
) -> Analyzer:
    """Fix the data; None is the training data that a flatmin estimator still holds.

    Parameters
    ----------
    analyzer : CurvatureAnalyzer or NoiseCovarianceAnalyzer
    X : array-like, data set or None
    y : array-like or None
    sample_weight : array-like or None

    Returns
    -------
    CurvatureAnalyzer or NoiseCovarianceAnalyzer
        The same one, fitted.

    Raises
    ------
    NotFittedError
        If the model is not fitted, or there are no data.
    """
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
