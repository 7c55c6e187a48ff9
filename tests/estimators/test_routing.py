"""Double-underscore parameters and the objects behind ``method``."""

import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from flatmin.noise import GLDConst, GLDHessian

from ._problems import blobs, classifier

X, y = blobs()


def test_sigma_of_a_name_goes_into_method_params():
    clf = classifier(method="gld_const").set_params(method__sigma=0.5)
    assert clf.method_params == {"sigma": 0.5}
    assert clf.fit(X, y).noise_.sigma == 0.5


def test_sigma_of_an_instance_goes_into_the_law():
    law = GLDConst()
    clf = classifier(method=law).set_params(method__sigma=0.5)
    assert clf.method_params is None
    assert law.sigma == 0.5
    assert clf.get_params()["method__sigma"] == 0.5
    assert clf.fit(X, y).noise_.sigma == 0.5


def test_method_and_its_parameter_in_one_call():
    law = GLDConst()
    clf = classifier(method="sgd").set_params(method__sigma=0.5, method=law)
    assert law.sigma == 0.5
    assert clf.method_params is None


def test_name_and_instance_are_the_same_run():
    named = classifier(method="gld_const", method_params={"sigma": 0.5}).fit(X, y)
    given = classifier(method=GLDConst(sigma=0.5)).fit(X, y)
    assert (named.params_ == given.params_).all()


def test_the_estimators_settings_override_those_of_an_instance():
    law = GLDHessian(batch_size=5, n_components=3, refresh_every=7, tol=0.1)
    settings = law.get_params()
    clf = classifier(method=law, n_components=2, noise_scale=0.5, max_iter=1).fit(X, y)
    assert clf.noise_.get_params() == settings | {
        "n_components": 2,
        "noise_scale": 0.5,
    }


def test_two_values_of_one_setting_are_refused():
    clf = classifier(batch_size=10, method_params={"batch_size": 50})
    with pytest.raises(ValueError, match=r"batch_size=10 and .*50.*leave out one"):
        clf.fit(X, y)
    assert clf.set_params(batch_size=50, max_iter=1).fit(X, y).noise_.batch_size == 50


def test_a_setting_that_the_law_lacks_is_refused():
    clf = classifier(method="gd").set_params(method__batch_size=5)
    with pytest.raises(ValueError, match="batch_size"):
        clf.fit(X, y)


def test_a_grid_over_the_warm_up():
    clf = classifier(max_iter=2, warmup={"max_iter": 5})
    grid = {"warmup__max_iter": [0, 5], "warmup__lr": [0.1, 0.2], "noise_scale": [1, 2]}
    search = GridSearchCV(clf, grid, cv=2).fit(X, y)
    assert len(search.cv_results_["params"]) == 8
    assert clf.warmup == {"max_iter": 5}
    wanted = {name[8:]: search.best_params_[name] for name in grid if "__" in name}
    assert search.best_estimator_.warmup == wanted


def test_the_given_law_is_left_alone():
    law = GLDHessian(n_components=3)
    before = law.get_params()
    clf = classifier(method=law, n_components=2, batch_size=5).fit(X, y)
    assert law.get_params() == before
    assert vars(law).keys() == before.keys()
    assert clf.noise_ is not law


def test_settings_that_a_law_does_not_have_are_not_its_business():
    classifier(method="gd", n_components=3, refresh_every=2, batch_size=5).fit(X, y)


def test_every_prefix_makes_a_new_dict():
    given = {"momentum": 0.5}
    clf = classifier(optimizer_params=given)
    clf.set_params(
        optimizer__nesterov=True,
        module__activation="tanh",
        warmup__max_iter=3,
        lr=0.3,
    )
    assert given == {"momentum": 0.5}
    assert clf.optimizer_params == {"momentum": 0.5, "nesterov": True}
    assert clf.module_params == {"hidden_layer_sizes": 8, "activation": "tanh"}
    assert clf.warmup == {"max_iter": 3}
    clf.fit(X, y)
    group = clf.net_.optimizer_.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["lr"]) == (0.5, True, 0.3)
    assert isinstance(clf.module_.layers[1], torch.nn.Tanh)
    assert clone(clf).get_params()["optimizer_params"] == clf.optimizer_params


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(ValueError, match="Invalid parameter 'learning_rate'"):
        classifier().set_params(learning_rate=3)
    with pytest.raises(ValueError, match="Invalid parameter 'sgma'"):
        classifier(method=GLDConst()).set_params(method__sgma=3)
