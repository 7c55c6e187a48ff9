"""Clones, searches and pickles: the model is shared and never altered."""

import copy
import pickle

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer, SharpnessScorer

from ._problems import blobs, classifier, network, skorch_classifier

X, y = blobs()
KINDS = [CurvatureAnalyzer, NoiseCovarianceAnalyzer, SharpnessScorer]
close = np.testing.assert_allclose


@pytest.fixture(scope="module")
def clf():
    return classifier().fit(X, y)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("make", [network, classifier, skorch_classifier])
def test_a_clone_has_the_same_model(kind, make):
    model = make()
    original = kind(model, dtype="float64", random_state=3)
    other = clone(original)
    assert other.estimator is original.estimator is model
    assert other.get_params() == original.get_params()
    assert other is not original


def test_a_clone_is_not_fitted_but_its_model_is(kind, clf):
    original = kind(clf).fit(X, y)
    other = clone(original)
    assert not hasattr(other, "risk_")
    assert not other.__sklearn_is_fitted__()
    check_is_fitted(other.estimator)


def test_a_clone_keeps_what_it_asked_for(kind, clf):
    with config_context(enable_metadata_routing=True):
        original = kind(clf).set_fit_request(sample_weight=True)
        request = clone(original).get_metadata_routing().fit.requests
    assert request == {"sample_weight": True}
    if kind is not SharpnessScorer:
        framed = clone(CurvatureAnalyzer(clf).set_output(transform="pandas"))
        columns = list(framed.fit(X, y).transform(X, y))
        assert columns[0] == "curvatureanalyzer0"


def test_parameters_of_the_model_are_not_searched(kind, clf):
    analyzer = kind(clf)
    assert not [name for name in analyzer.get_params(deep=True) if "__" in name]
    lr = clf.lr
    with pytest.raises(ValueError, match=r"share.* Got estimator__lr; fit another"):
        analyzer.set_params(estimator__lr=5.0)
    search = GridSearchCV(analyzer, {"estimator__lr": [5.0]}, cv=2)
    with pytest.raises(ValueError, match=r"Got estimator__lr"):
        search.fit(X, y)
    assert clf.lr == lr
    assert analyzer.set_params(estimator=None).estimator is None


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_over_its_own_parameters(clf, n_jobs):
    search = GridSearchCV(
        CurvatureAnalyzer(clf, random_state=0),
        {"n_components": [1, 4], "matrix": ["hessian", "ggn"]},
        cv=2,
        n_jobs=n_jobs,
    )
    search.fit(X, y)
    table = search.cv_results_
    by_size = {n: table["param_n_components"] == n for n in (1, 4)}
    assert (table["mean_test_score"][by_size[4]] > 0.5).all()
    assert (
        table["mean_test_score"][by_size[1]] < table["mean_test_score"][by_size[4]]
    ).all()
    assert search.best_params_["n_components"] == 4
    assert search.best_estimator_.estimator is clf


def test_a_search_sees_the_folds(clf):
    search = GridSearchCV(
        NoiseCovarianceAnalyzer(clf, random_state=0),
        {"n_components": [3]},
        cv=[(np.arange(20), np.arange(20, 40))],
    ).fit(X, y)
    by_hand = NoiseCovarianceAnalyzer(clf, n_components=3, random_state=0)
    by_hand.fit(X[:20], y[:20])
    close(search.best_score_, by_hand.score(X[20:], y[20:]), rtol=1e-5)


def test_cross_validation_gives_back_analyzers_with_their_data(clf):
    results = cross_validate(
        CurvatureAnalyzer(clf, n_components=2),
        X,
        y,
        cv=2,
        n_jobs=2,
        return_estimator=True,
    )
    first, second = results["estimator"]
    assert first.risk_.n_examples + second.risk_.n_examples == len(X)
    assert first.transform(X, y).shape == (len(X), 2)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))]
)
@pytest.mark.parametrize("make", [network, classifier, skorch_classifier])
def test_copies_and_pickles(copied, make):
    model = make()
    loss = "cross_entropy" if make is network else None
    if make is not network:
        model.fit(X, y)
    for kind in (CurvatureAnalyzer, NoiseCovarianceAnalyzer):
        analyzer = kind(model, loss=loss, random_state=0).fit(X, y)
        fresh = copied(analyzer)
        close(fresh.transform(X, y), analyzer.transform(X, y), atol=1e-6)
        close(copied(analyzer).trace().value, analyzer.trace().value, rtol=1e-6)
    scorer = copied(SharpnessScorer(model, loss=loss, n_draws=5).fit(X, y))
    assert scorer.score(X, y) == -scorer.sharpness_


def test_inside_of_a_pipeline_of_its_own(clf):
    pipeline = make_pipeline(StandardScaler(), CurvatureAnalyzer(clf, n_components=2))
    scaled = StandardScaler().fit_transform(X)
    expected = CurvatureAnalyzer(clf, n_components=2).fit_transform(scaled, y)
    close(pipeline.fit_transform(X, y), expected, atol=1e-5)
