"""SharpnessScorer as a scorer and as an estimator."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from flatmin import SharpnessScorer, expected_sharpness
from flatmin.linalg import Estimate
from flatmin.measures import (
    SHARPNESS_MEASURES,
    max_eigenvalue,
    register_measure,
    trace_sharpness,
)

from ._problems import blobs, classifier, network, skorch_classifier, truth

X, y = blobs()
X_new, y_new = blobs(20, seed=1)


@pytest.fixture(scope="module")
def clf():
    return classifier().fit(X, y)


@pytest.mark.parametrize("measure", SHARPNESS_MEASURES)
def test_it_is_minus_the_measure(clf, measure):
    scorer = SharpnessScorer(measure=measure)
    risk = clf.make_risk(X_new, y_new)
    expected = SHARPNESS_MEASURES[measure](risk, risk.params())
    assert scorer(clf, X_new, y_new) == pytest.approx(-float(expected), rel=1e-6)
    training = SHARPNESS_MEASURES[measure](clf.risk_, clf.risk_.params())
    for on_training in (
        scorer(clf),
        clone(scorer).set_params(on="training")(clf, X_new, y_new),
    ):
        assert on_training == pytest.approx(-float(training), rel=1e-6)


def test_an_eigenvalue_that_has_not_converged_is_no_score():
    wide = nn.Sequential(nn.Linear(X.shape[1], 200), nn.Tanh(), nn.Linear(200, 3))
    options = {
        "measure": "max_eigenvalue",
        "measure_params": {"max_matvecs": 2, "tol": 1e-12},
        "loss": "cross_entropy",
    }
    scorer = SharpnessScorer(wide, **options)
    few = partial(max_eigenvalue, **options.pop("measure_params"))
    of_partial = SharpnessScorer(wide, **options | {"measure": few})
    for score in (scorer.score, partial(scorer, wide), of_partial.score):
        with (
            pytest.warns(ConvergenceWarning),
            pytest.raises(RuntimeError, match="has not converged within 2 products"),
        ):
            score(X, y)
    with pytest.warns(ConvergenceWarning):
        scorer.fit(X, y)
    assert np.isnan(scorer.stderr_)


def test_options_of_the_measure(clf):
    risk, theta = clf.risk_, clf.risk_.params()
    scorer = SharpnessScorer(sigma=0.1, n_draws=7, random_state=3)
    expected = expected_sharpness(risk, theta, sigma=0.1, n_draws=7, rng=3)
    assert scorer(clf) == -float(expected)
    scorer.set_params(measure_params={"absolute": True})
    expected = expected_sharpness(
        risk, theta, sigma=0.1, n_draws=7, rng=3, absolute=True
    )
    assert scorer(clf) == -float(expected)
    scorer = SharpnessScorer(measure="sam", measure_params={"rho": 0.2})
    assert scorer(clf) < SharpnessScorer(measure="sam")(clf) < 0


def test_an_option_that_a_measure_has_not_is_refused(clf):
    for params, message in [
        ({"measure": "sam", "sigma": 0.1}, r"option of the measure 'sam' 'sigma'"),
        ({"measure_params": {"n_drawz": 3}}, r"did you mean 'n_draws'"),
        ({"measure_params": {"rng": 3}}, r"'expected' 'rng'"),
        ({"measure": "expcted"}, r"'measure' parameter .* Got 'expcted'"),
        ({"on": "test"}, r"'on' parameter .* Got 'test'"),
        ({"n_draws": 1}, r"'n_draws' parameter .* Got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            SharpnessScorer(**params)(clf, X, y)


def test_common_random_numbers_and_truly_random_ones(clf):
    assert SharpnessScorer()(clf, X, y) == SharpnessScorer()(clf, X, y)
    random = SharpnessScorer(random_state=None, n_draws=3)
    assert random(clf, X, y) != random(clf, X, y)


def test_fit_keeps_the_number_and_its_error(clf):
    scorer = SharpnessScorer(clf, n_draws=20).fit(X_new, y_new)
    risk = clf.make_risk(X_new, y_new)
    result = expected_sharpness(risk, risk.params(), n_draws=20)
    assert scorer.sharpness_ == pytest.approx(float(result), rel=1e-6)
    assert scorer.stderr_ == pytest.approx(float(result.stderr), rel=1e-6)
    assert scorer.score(X_new, y_new) == -scorer.sharpness_
    assert scorer.fit().sharpness_ == -scorer(clf) != -scorer(clf, X_new, y_new)
    with pytest.raises(ValueError, match=r"Got estimator=None; use SharpnessScorer\("):
        SharpnessScorer().fit(X, y)


def test_a_call_changes_nothing(clf):
    scorer = SharpnessScorer(n_draws=3)
    before = vars(scorer).copy()
    scorer(clf, X, y)
    assert vars(scorer) == before


def test_modules_and_skorch_nets():
    net = skorch_classifier().fit(X, y)
    same = SharpnessScorer(loss="cross_entropy")(net.module_, X, y)
    assert SharpnessScorer()(net, X, y) == same
    exact = SharpnessScorer(measure="trace", dtype="float64")(net, X, y)
    assert exact == pytest.approx(SharpnessScorer(measure="trace")(net, X, y), rel=1e-4)
    trace = float(truth(net.module_, X, y).hessian.trace())
    assert exact == pytest.approx(-(0.01**2) / 2 * trace)
    with pytest.raises(NotFittedError, match="SharpnessScorer has no data"):
        SharpnessScorer(on="training")(net, X, y)
    with pytest.raises(ValueError, match="no loss of its own"):
        SharpnessScorer()(network(), X, y)


def test_a_flat_model_scores_higher():
    # The loss (θ - 1)² x² has the curvature 2 x².
    line = torch.nn.Linear(1, 1, bias=False)
    for measure in ("expected", "trace", "max_eigenvalue"):
        scorer = SharpnessScorer(measure=measure, loss="squared_error")
        flat, sharp = (scorer(line, [[x]], [x]) for x in (1.0, 3.0))
        assert sharp < flat < 0


def test_several_scorers_in_a_search_of_two_processes():
    weights = np.linspace(0.5, 1.5, len(X))
    flat = SharpnessScorer(n_draws=5)
    scoring = {
        "accuracy": "accuracy",
        "flat": flat,
        "trained": SharpnessScorer(n_draws=5, on="training"),
    }
    folds = [(np.arange(30), np.arange(30, 40)), (np.arange(10, 40), np.arange(10))]
    pipeline = make_pipeline(StandardScaler(), classifier(max_iter=10))
    grid = {"noisydiffusionclassifier__lr": [0.05, 0.5]}
    search = GridSearchCV(
        pipeline,
        grid,
        scoring=scoring,
        refit="accuracy",
        cv=folds,
        n_jobs=2,
        return_train_score=True,
    )
    search.fit(X, y)
    table = search.cv_results_
    train, test = folds[0]
    model = clone(pipeline).set_params(**{next(iter(grid)): 0.5})
    model.fit(X[train], y[train])
    expected = {
        "split0_test_flat": flat(model, X[test], y[test]),
        "split0_train_flat": flat(model, X[train], y[train]),
        "split0_test_trained": flat(model),
        "split0_train_trained": flat(model),
    }
    for name, value in expected.items():
        assert table[name][1] == pytest.approx(value, rel=1e-4), name
    # The stored data are scaled by the pipeline before, those here go through it.
    assert expected["split0_train_flat"] == pytest.approx(
        expected["split0_test_trained"], rel=1e-4
    )
    search = GridSearchCV(
        classifier(max_iter=10),
        {"lr": [0.1]},
        scoring={"accuracy": "accuracy", "flat": flat},
        refit=False,
        cv=folds,
    )
    search.fit(X, y, sample_weight=weights)
    model = classifier(max_iter=10).fit(X[train], y[train], weights[train])
    value = flat(model, X[test], y[test], sample_weight=weights[test])
    assert search.cv_results_["split0_test_flat"][0] == pytest.approx(value, rel=1e-4)
    assert value != pytest.approx(flat(model, X[test], y[test]), rel=1e-4)


def test_as_the_only_scorer():
    scorer = SharpnessScorer(n_draws=3)
    assert check_scoring(classifier(), scoring=scorer) is scorer
    train, test = np.arange(30), np.arange(30, 40)
    scores = cross_val_score(
        classifier(), X, y, scoring=scorer, cv=[(train, test)], error_score="raise"
    )
    model = classifier().fit(X[train], y[train])
    assert scores == pytest.approx([scorer(model, X[test], y[test])], rel=1e-5)


def test_a_search_over_a_skorch_net():
    net, flat = skorch_classifier(), SharpnessScorer(n_draws=3)
    scoring = {"accuracy": "accuracy", "flat": flat}
    folds = [(np.arange(30), np.arange(30, 40))]
    search = GridSearchCV(net, {"lr": [0.1]}, scoring=scoring, refit=False, cv=folds)
    found = search.fit(X, y).cv_results_["split0_test_flat"]
    model = clone(net).fit(X[:30], y[:30])
    assert found == pytest.approx([flat(model, X[30:], y[30:])], rel=1e-4)


def test_weights_by_metadata_routing():
    weights = np.linspace(0.5, 1.5, len(X))
    folds = [(np.arange(30), np.arange(30, 40))]
    with config_context(enable_metadata_routing=True):
        flat = SharpnessScorer(n_draws=3).set_score_request(sample_weight=True)
        search = GridSearchCV(
            classifier(max_iter=5).set_fit_request(sample_weight=True),
            {"lr": [0.1]},
            scoring={"flat": flat},
            refit=False,
            cv=folds,
        ).fit(X, y, sample_weight=weights)
    train, test = folds[0]
    model = classifier(max_iter=5).fit(X[train], y[train], weights[train])
    value = SharpnessScorer(n_draws=3)(model, X[test], y[test], weights[test])
    assert search.cv_results_["split0_test_flat"][0] == pytest.approx(value, rel=1e-4)


def half_the_curvature(risk, theta, *, factor=0.5):
    """Return a fraction of Tr(H), which is (s²/2) Tr(H) for s² = 2."""
    whole = trace_sharpness(risk, theta, sigma=2**0.5, max_matvecs=10**6)
    return factor * whole.value


def test_a_measure_of_one_s_own(clf):
    net = clf.module_
    trace = float(truth(net, X_new, y_new).hessian.trace())
    scorer = SharpnessScorer(measure=half_the_curvature, dtype="float64")
    assert scorer(clf, X_new, y_new) == pytest.approx(-trace / 2, rel=1e-5)
    scorer.set_params(measure_params={"factor": 2.0})
    assert scorer(clf, X_new, y_new) == pytest.approx(-2 * trace, rel=1e-5)
    assert clone(scorer).measure is half_the_curvature
    fitted = SharpnessScorer(clf, measure=lambda risk, theta: 3).fit(X, y)
    assert (fitted.sharpness_, fitted.stderr_, fitted.n_matvecs_) == (3.0, 0.0, 0)
    # What it says of its error and its cost is kept.
    estimate = Estimate(torch.tensor(2.0), torch.tensor(0.5), 7)
    fitted = SharpnessScorer(clf, measure=lambda risk, theta: estimate).fit(X, y)
    assert (fitted.sharpness_, fitted.stderr_, fitted.n_matvecs_) == (2.0, 0.5, 7)
    # Common random numbers for a measure that draws.
    drawn = SharpnessScorer(measure=lambda r, t, rng: torch.rand(1, generator=rng)[0])
    assert drawn(clf, X, y) == drawn(clf, X, y)
    assert drawn(clf, X, y) != clone(drawn).set_params(random_state=1)(clf, X, y)


def test_a_measure_by_the_name_that_it_was_registered_under(clf):
    try:
        register_measure(half_the_curvature)
        scorer = SharpnessScorer(measure="half_the_curvature")
        number = scorer(clf, X, y)
        assert number == SharpnessScorer(measure=half_the_curvature)(clf, X, y)
        kept = pickle.dumps(scorer)
    finally:
        del SHARPNESS_MEASURES["half_the_curvature"]
    with pytest.raises(ValueError, match="Got 'half_the_curvature'"):
        scorer(clf, X, y)
    try:  # as a worker process does
        assert pickle.loads(kept)(clf, X, y) == number
    finally:
        del SHARPNESS_MEASURES["half_the_curvature"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, TypeError, "one number. Got None"),
        ("1.5", TypeError, "one number. Got '1.5'"),
        (True, TypeError, "one number. Got True"),
        ([1.0], TypeError, r"one number. Got \[1.0\]"),
        (np.ones(1), TypeError, r"one number. Got array\(\[1.\]\)"),
        (torch.ones(2), TypeError, "one number. Got tensor"),
        (1j, TypeError, "one number. Got 1j"),
        (Estimate(torch.ones(2), torch.ones(2)), TypeError, "one number. Got Estimate"),
        (float("nan"), FloatingPointError, "a finite number. Got nan"),
        (torch.tensor(torch.inf), FloatingPointError, "a finite number. Got inf"),
    ],
)
def test_a_measure_that_gives_no_number_is_named(clf, value, error, message):
    def mine(risk, theta):
        return value

    with pytest.raises(error, match=rf"the measure '.*mine' must return {message}"):
        SharpnessScorer(measure=mine)(clf, X, y)


def test_a_function_of_something_else_is_refused_before_work():
    for measure, message in [
        (lambda risk: 0, "too many positional arguments"),
        (lambda risk, theta, *, rho: 0, "missing a required.* 'rho'"),
    ]:
        with pytest.raises(
            TypeError, match=rf"a function of \(risk, theta\).*{message}"
        ):
            SharpnessScorer(measure=measure)(None, X, y)
    wrong = SharpnessScorer(measure=half_the_curvature, measure_params={"fctor": 1})
    with pytest.raises(ValueError, match="did you mean 'factor'"):
        wrong(None, X, y)
