"""The risk of a fitted network: of the training, and of other data."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from flatmin import CurvatureAnalyzer, SharpnessScorer

from ._problems import blobs, classifier, plane, regressor

X, y = blobs()


def test_on_the_training_data_it_is_that_of_the_training():
    weights = np.linspace(0.5, 1, len(X))
    for class_weight in (None, "balanced", {0: 1, 1: 5, 2: 0.5}):
        clf = classifier(class_weight=class_weight).fit(X, y, weights)
        risk, theta = clf.make_risk(X, y, weights), clf.risk_.params()
        assert torch.equal(risk.params(), theta)
        assert torch.equal(risk.gradient(theta), clf.risk_.gradient(theta))


def test_class_weights_stay_those_of_the_training():
    clf = classifier(class_weight="balanced").fit(X[:50], y[:50])
    by_class = 50 / (3 * np.bincount(y[:50]))
    few = y > 0
    plain = classifier(params_init=clf.params_, max_iter=0).fit(X, y)
    expected = plain.make_risk(X[few], y[few], by_class[y[few]])
    theta = expected.params()
    torch.testing.assert_close(
        clf.make_risk(X[few], y[few]).gradient(theta), expected.gradient(theta)
    )


def test_a_class_without_weight_is_balanced_by_none():
    """It counts nothing; the others have the same weight each."""
    weights = np.where(y == 2, 0.0, 1.0)
    clf = classifier(class_weight="balanced").fit(X, y, weights)
    counts = np.bincount(y)
    others = {0: 1 / counts[0], 1: 1 / counts[1], 2: 0.0}
    expected = classifier(class_weight=others).fit(X, y, weights)
    theta = expected.risk_.params()
    torch.testing.assert_close(
        clf.risk_.gradient(theta), expected.risk_.gradient(theta)
    )


def test_device_and_dtype():
    data = plane(n_targets=2)
    reg = regressor().fit(*data)
    risk = reg.make_risk(*data, device="cpu", dtype="float64")
    assert risk.dtype == torch.float64
    torch.testing.assert_close(
        float(risk.value(risk.params())),
        reg.history_["loss"].iloc[-1],
        rtol=1e-5,
        atol=0,
    )


def test_it_needs_a_network_and_data_like_the_training():
    with pytest.raises(NotFittedError):
        classifier().make_risk(X, y)
    clf = classifier().fit(X, y)
    with pytest.raises(ValueError, match="X has 3 features"):
        clf.make_risk(X[:, :3], y)
    with pytest.raises(ValueError, match="labels that the training data did not"):
        clf.make_risk(X, y + 1)
    with pytest.raises(ValueError, match="as many examples"):
        clf.make_risk(X, y[1:])


@pytest.mark.parametrize(
    "changed",
    [
        {"l2": 1.0},
        {"loss": torch.nn.CrossEntropyLoss(label_smoothing=0.3)},
        {"loss": "squared_error"},
        {"output_transform": torch.neg},
    ],
    ids=["penalty", "smoothed", "squared", "negated"],
)
def test_what_is_set_after_the_fit_counts_from_the_next(changed):
    clf = classifier(l2=0.01).fit(X, y)
    scorer = SharpnessScorer(measure="max_eigenvalue", random_state=0)

    def told():
        probabilities, score = clf.predict_proba(X), clf.score(X, y)
        gradient = clf.make_risk(X, y).gradient(clf.risk_.params())
        eigenvalues = CurvatureAnalyzer(clf, random_state=0).fit(X, y).eigen(k=1)
        numbers = score, scorer(clf, X, y), float(eigenvalues.eigenvalues[0])
        return probabilities.tolist(), gradient.tolist(), numbers

    before = told()
    assert told() == before
    clf.set_params(**changed)
    assert told() == before


def test_the_next_fit_takes_what_is_set():
    clf = classifier(l2=0.01).fit(X, y).set_params(l2=2.0)
    assert pickle.loads(pickle.dumps(clf)).make_risk(X, y).l2 == 0.01
    assert clf.fit(X, y).make_risk(X, y).l2 == 2.0


def test_a_regressor_predicts_as_it_was_fitted():
    X, y = plane()
    reg = regressor().fit(X, y)
    before, score = reg.predict(X), reg.score(X, y)
    reg.set_params(output_transform=torch.zeros_like, loss="huber")
    np.testing.assert_array_equal(reg.predict(X), before)
    assert reg.score(X, y) == score
