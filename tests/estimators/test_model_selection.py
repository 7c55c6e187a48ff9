"""Both estimators inside scikit-learn's tools."""

import numpy as np
import pytest
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flatmin.noise import GLDConst

from ._problems import Scaled, blobs, classifier, plane, regressor

X, y = blobs()


def test_clone_copies_settings_and_nothing_learnt():
    law = GLDConst(sigma=0.1)
    clf = classifier(method=law, params_init=np.zeros(67)).fit(X, y)
    copy = clone(clf)
    assert copy.get_params(deep=False).keys() == clf.get_params(deep=False).keys()
    assert copy.method is not law
    assert copy.method.sigma == 0.1
    assert not hasattr(copy, "params_")
    np.testing.assert_array_equal(copy.fit(X, y).params_, clf.params_)


def test_clone_does_not_share_routed_dicts():
    clf = classifier()
    copy = clone(clf).set_params(module__hidden_layer_sizes=3)
    assert clf.module_params == {"hidden_layer_sizes": 8}
    assert copy.module_params == {"hidden_layer_sizes": 3}


def test_pipeline_takes_routed_parameters_and_weights():
    pipeline = make_pipeline(StandardScaler(), classifier())
    name = "noisydiffusionclassifier"
    pipeline.set_params(**{f"{name}__module__hidden_layer_sizes": 3})
    weights = np.ones(len(X))
    pipeline.fit(X, y, **{f"{name}__sample_weight": weights})
    assert pipeline[-1].module_.layers[0].out_features == 3
    assert pipeline.score(X, y) > 0.5


@pytest.mark.parametrize(
    ("estimator", "data"), [(classifier(), blobs()), (regressor(), plane())]
)
def test_cross_validate(estimator, data):
    X, y = data
    cv = KFold(3, shuffle=True, random_state=0)
    scores = cross_validate(estimator, X, y, cv=cv, return_train_score=True)
    for i, (train, test) in enumerate(cv.split(X)):
        fitted = clone(estimator).fit(X[train], y[train])
        assert scores["test_score"][i] == fitted.score(X[test], y[test])
        assert scores["train_score"][i] == fitted.score(X[train], y[train])


GRIDS = [
    {"method": ["gd", "sgd", "gld_full"], "noise_scale": [0.5, 1.0]},
    {"method": ["gld_const"], "method__sigma": [0.01, 0.1]},
    {"method": [GLDConst()], "method__sigma": [0.02]},
    {"module__hidden_layer_sizes": [2, (4, 4)], "optimizer__momentum": [0.0, 0.5]},
]


def assert_winner_is_the_fit_by_hand(search):
    by_hand = clone(search.estimator).set_params(**search.best_params_).fit(X, y)
    np.testing.assert_array_equal(search.best_estimator_.params_, by_hand.params_)
    assert search.best_estimator_.history_.equals(by_hand.history_)


@pytest.mark.parametrize("grid", GRIDS, ids=["methods", "name", "law", "module"])
def test_a_grids_winner_is_the_fit_by_hand(grid):
    search = GridSearchCV(classifier(), grid, cv=3).fit(X, y)
    assert_winner_is_the_fit_by_hand(search)


def test_a_parallel_grid_is_the_same_grid():
    parallel = GridSearchCV(classifier(), GRIDS, cv=2, n_jobs=2).fit(X, y)
    assert_winner_is_the_fit_by_hand(parallel)
    alone = GridSearchCV(classifier(), GRIDS, cv=2).fit(X, y)
    for key in ("split0_test_score", "split1_test_score"):
        np.testing.assert_array_equal(parallel.cv_results_[key], alone.cv_results_[key])


def test_a_grids_folds_are_fits_by_hand():
    cv = KFold(3)
    search = GridSearchCV(classifier(), {"method": ["sgd", "gd"]}, cv=cv).fit(X, y)
    for fold, (train, test) in enumerate(cv.split(X)):
        scores = search.cv_results_[f"split{fold}_test_score"]
        for method, score in zip(("sgd", "gd"), scores, strict=True):
            clf = classifier(method=method).fit(X[train], y[train])
            assert clf.score(X[test], y[test]) == score


def test_a_grid_scores_a_diverged_fit_as_nan():
    grid = GridSearchCV(regressor(), {"lr": [0.02, 1e9]}, cv=2)
    with pytest.warns(Warning, match=r"DivergenceError|non-finite|NaN") as warned:
        grid.fit(*plane())
    assert "The loss became" in "".join(str(w.message) for w in warned)
    assert grid.best_params_ == {"lr": 0.02}


def test_a_grid_goes_on_over_fits_that_stop():
    grid = GridSearchCV(regressor(on_divergence="stop"), {"lr": [0.02, 1e9]}, cv=2)
    with pytest.warns(ConvergenceWarning, match="Stopped at the last parameters"):
        grid.fit(*plane())
    assert np.isfinite(grid.cv_results_["mean_test_score"]).all()
    assert grid.best_params_ == {"lr": 0.02}


def test_threads_build_and_predict_alike():
    # Both the initialisation and skorch's loaders know the global generator.
    def fit(seed):
        return classifier(random_state=seed, module=Scaled).fit(X, y).params_

    alone = [fit(seed) for seed in range(8)]
    together = Parallel(n_jobs=4, backend="threading")(
        delayed(fit)(seed) for seed in range(8)
    )
    np.testing.assert_array_equal(together, alone)


def test_an_ensemble_of_clones():
    ensemble = BaggingClassifier(classifier(), n_estimators=2, random_state=0)
    ensemble.fit(X, y)
    first, second = ensemble.estimators_
    assert not np.array_equal(first.params_, second.params_)
