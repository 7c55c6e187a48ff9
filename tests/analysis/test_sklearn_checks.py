"""scikit-learn's checks of an estimator, for the analyzers and the scorer."""

import numpy as np
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer, SharpnessScorer

from ._problems import AnyWidth


class _Targets:
    """Gives transform the same targets always: most checks call it without."""

    def transform(self, X, y=None):
        numbers = np.asarray(X, dtype=float)
        return super().transform(X, numbers.reshape(len(numbers), -1)[:, 0])


class Curvature(_Targets, CurvatureAnalyzer):
    pass


class Noise(_Targets, NoiseCovarianceAnalyzer):
    pass


def expected_failed_checks(estimator):
    """Return what does not apply, and why."""
    reasons = {
        "check_estimators_overwrite_params": (
            "joblib.hash of a module is not that of its deep copy; "
            "test_the_model_is_untouched compares instead"
        ),
        "check_dtype_object": (
            "it is the loss that says what y may be, and it asks for numbers, not for "
            "a known type of labels"
        ),
    }
    if isinstance(estimator, SharpnessScorer):
        return reasons
    reasons["check_fit2d_predict1d"] = (
        "an X that a Pipeline turns into rows may have one dimension, so what is said "
        "is that the features are missing, not to reshape"
    )
    if isinstance(estimator, Noise):
        reasons["check_sample_weight_equivalence_on_dense_data"] = (
            "a repetition and a weight agree in the gradient, not in the covariance of "
            "the examples"
        )
    return reasons


def any_width():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AnyWidth()


@parametrize_with_checks(
    [
        kind(any_width(), loss="squared_error", dtype="float64", **params)
        for kind, params in [
            (Curvature, {}),
            (Noise, {}),
            (SharpnessScorer, {"n_draws": 5}),
        ]
    ],
    expected_failed_checks=expected_failed_checks,
)
def test_what_applies(estimator, check):
    check(estimator)
