"""sample_weight and class_weight."""

import numpy as np
import pytest

from ._problems import blobs, classifier, plane, regressor

X, y = blobs()


def gd(**params):
    return classifier(method="gd", dtype="float64", **params)


def assert_same_run(first, second):
    np.testing.assert_allclose(first.params_, second.params_, rtol=1e-8, atol=1e-10)


def test_a_weight_of_zero_removes_an_example():
    keep = np.arange(len(X)) % 4 > 0
    weighted = gd().fit(X, y, keep.astype(float))
    assert_same_run(weighted, gd().fit(X[keep], y[keep]))


def test_a_weight_of_two_repeats_an_example():
    weights = 1 + np.arange(len(X)) % 2
    repeated = np.repeat(np.arange(len(X)), weights)
    assert_same_run(gd().fit(X, y, weights), gd().fit(X[repeated], y[repeated]))


def test_only_the_ratios_of_weights_matter():
    weights = np.linspace(1, 2, len(X))
    assert_same_run(gd().fit(X, y, weights), gd().fit(X, y, 100 * weights))


def test_equal_weights_are_no_weights():
    weighted = classifier().fit(X, y, np.full(len(X), 0.3))
    np.testing.assert_array_equal(weighted.params_, classifier().fit(X, y).params_)


def test_a_regressor_takes_weights():
    X, y = plane()
    outlier = np.arange(len(X)) == 3
    spoilt = np.where(outlier, 1000.0, y)
    settings = {"method": "gd", "dtype": "float64"}
    weighted = regressor(**settings).fit(X, spoilt, 1.0 - outlier)
    without = regressor(**settings).fit(X[~outlier], y[~outlier])
    assert_same_run(weighted, without)


def test_class_weights_are_weights_of_examples():
    by_class = {0: 1.0, 1: 5.0, 2: 0.5}
    weights = np.array([by_class[label] for label in y])
    assert_same_run(gd(class_weight=by_class).fit(X, y), gd().fit(X, y, weights))


def test_class_weights_of_labels_as_they_are():
    labels = np.array(["a", "b", "c"])[y]
    named = gd(class_weight={"a": 1, "b": 5, "c": 0.5}).fit(X, labels)
    assert_same_run(named, gd(class_weight={0: 1, 1: 5, 2: 0.5}).fit(X, y))


def test_balanced_classes_weigh_alike():
    few = np.flatnonzero((y > 0) | (np.arange(len(y)) < 12))
    X_few, y_few = X[few], y[few]
    counts = np.bincount(y_few)
    weights = len(y_few) / (3 * counts[y_few])
    balanced = gd(class_weight="balanced").fit(X_few, y_few)
    assert_same_run(balanced, gd().fit(X_few, y_few, weights))


def test_balanced_counts_what_the_weights_leave():
    weights = np.where((y == 0) & (np.arange(len(y)) >= 12), 0.0, 1.0)
    left = weights > 0
    balanced = gd(class_weight="balanced")
    weighted = balanced.fit(X, y, weights).params_
    without = balanced.fit(X[left], y[left]).params_
    np.testing.assert_allclose(weighted, without, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["sgd", "gld_full", "gld_hessian"])
def test_noisy_methods_take_weights(method):
    weights = np.where(y == 0, 5.0, 0.1)
    clf = classifier(method=method, max_iter=60).fit(X, y, weights)
    plain = classifier(method=method, max_iter=60).fit(X, y)
    assert (clf.predict(X) == 0).sum() > (plain.predict(X) == 0).sum()


@pytest.mark.parametrize("class_weight", [{0: 1, 1: 2, 2: 3}, "balanced"])
@pytest.mark.parametrize("weights", [np.ones(3), 2.0], ids=["short", "a number"])
def test_weights_are_counted_before_they_are_multiplied(class_weight, weights):
    with pytest.raises(ValueError, match=rf"sample_weight must have .*\({len(X)},\)"):
        gd(class_weight=class_weight).fit(X, y, weights)
