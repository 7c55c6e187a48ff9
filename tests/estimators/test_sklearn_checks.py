"""scikit-learn's checks of an estimator, for both estimators under every law."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from flatmin import NoisyDiffusionClassifier, NoisyDiffusionRegressor
from flatmin.noise import METHODS

# The laws of which a weight of 2 and a repeated example are the same to the last draw.
WEIGHT_IS_REPETITION = {"gd", "sam", "gld_const", "gradient_penalty"}
# Laws that ask of an estimator nothing that others do not: they take minutes more.
LIKE_OTHERS = {"projected", "bernoulli", "alpha_stable", "anti_pgd"}
LIKE_OTHERS |= {"gradient_penalty", "gld_dynamic", "gld_first_eigenvector"}
LIKE_OTHERS |= {"gld_random_subspace", "gld_shuffled", "gld_fisher"}
LIKE_OTHERS |= {"gld_const", "gld_diagonal", "gld_leading", "gld_ggn"}
LIKE_OTHERS |= {"label_noise", "sam", "svag"}

# Checks fit a hundred times: few iterations of Adam, which takes any scale of y.
QUICK = {
    NoisyDiffusionClassifier: {"lr": 0.1, "max_iter": 20},
    NoisyDiffusionRegressor: {"lr": 0.05, "max_iter": 30},
}


def quick(estimator, method, dtype="float64"):
    """Return an estimator that the checks can afford."""
    return estimator(
        method=method,
        # More take plain steps only, which do not bear any scale of y.
        method_params={"n_substeps": 1} if method == "svag" else None,
        dtype=dtype,
        module_params={"hidden_layer_sizes": 8},
        optimizer="adam",
        refresh_every=1000,
        record_every=1000,
        **QUICK[estimator],
    )


def expected_failed_checks(estimator):
    """Return the one check that only a law without Σ and without draws passes."""
    reason = (
        "a repetition and a weight agree in the gradient, not in the covariance "
        "of the examples or in the draws"
    )
    if estimator.method in WEIGHT_IS_REPETITION:
        if estimator.dtype == "float64" or isinstance(
            estimator, NoisyDiffusionRegressor
        ):
            return {}
        reason = "sums of other lengths differ by rounding; the check asks for 1e-7"
    return {"check_sample_weight_equivalence_on_dense_data": reason}


@parametrize_with_checks(
    [
        quick(estimator, method)
        for estimator in QUICK
        for method in METHODS
        if method not in LIKE_OTHERS
    ],
    expected_failed_checks=expected_failed_checks,
)
def test_every_law_passes(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [quick(estimator, method) for estimator in QUICK for method in sorted(LIKE_OTHERS)],
    expected_failed_checks=expected_failed_checks,
)
def test_laws_like_others_pass(estimator, check):
    check(estimator)


@parametrize_with_checks(
    [
        quick(NoisyDiffusionClassifier, "gd", "float32"),
        quick(NoisyDiffusionRegressor, "gld_full", "float32"),
    ],
    expected_failed_checks=expected_failed_checks,
)
def test_in_float32(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        estimator(method=method, dtype="float64")
        for estimator in QUICK
        for method in ("gd", "sgd", "gld_const", "gld_full")
    ],
    expected_failed_checks=expected_failed_checks,
)
def test_the_defaults_pass(estimator, check):
    check(estimator)
