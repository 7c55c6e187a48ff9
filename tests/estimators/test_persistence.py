"""Fitted estimators are copied, stored, and trained on."""

import copy
import pickle

import joblib
import numpy as np
import pytest
import torch

from ._problems import Deep, blobs, classifier, flat, plane, regressor

X, y = blobs()
COPIES = {
    "pickle": lambda clf, folder: pickle.loads(pickle.dumps(clf)),
    "deepcopy": lambda clf, folder: copy.deepcopy(clf),
    "joblib": lambda clf, folder: joblib.load(joblib.dump(clf, folder / "clf")[0]),
}
copied = pytest.mark.parametrize("how", COPIES)


def assert_one_module(clf):
    """All ways to the network lead to the same parameters."""
    assert clf.module_ is clf.net_.module_
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))
    storages = {p.untyped_storage().data_ptr() for p in clf.module_.parameters()}
    assert len(storages) == len(list(clf.module_.parameters()))
    inputs = X.astype(clf.params_.dtype)
    np.testing.assert_array_equal(clf.net_.predict(inputs), clf.predict(X))


@copied
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_copy_predicts_alike(how, optimizer, tmp_path):
    clf = classifier(module=Deep, optimizer=optimizer, lr=0.001).fit(X, y)
    copy = COPIES[how](clf, tmp_path)
    np.testing.assert_array_equal(copy.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(copy.params_, clf.params_)
    assert copy.history_.equals(clf.history_)
    assert copy.net_.history[:, "train_loss"] == clf.net_.history[:, "train_loss"]
    assert copy.risk_ is None
    assert_one_module(clf)
    assert_one_module(copy)


@copied
def test_a_regressor_is_copied_too(how, tmp_path):
    X, y = plane(n_targets=2)
    reg = regressor().fit(X, y)
    np.testing.assert_array_equal(COPIES[how](reg, tmp_path).predict(X), reg.predict(X))


def test_an_estimator_before_fit_is_copied():
    copy = pickle.loads(pickle.dumps(classifier()))
    np.testing.assert_array_equal(
        copy.fit(X, y).params_, classifier().fit(X, y).params_
    )


@copied
def test_training_on_moves_the_module_that_predicts(how, tmp_path):
    clf = classifier(module=Deep, lr=0.01, warm_start=True).fit(X, y)
    copy = COPIES[how](clf, tmp_path)
    before = copy.predict_proba(X)
    copy.fit(X, y)
    assert not np.array_equal(copy.predict_proba(X), before)
    assert_one_module(copy)
    # It goes on exactly as the original does.
    np.testing.assert_array_equal(copy.params_, clf.fit(X, y).params_)
    assert copy.n_iter_ == 60


def test_training_on_after_double():
    clf = classifier(warm_start=True).fit(X, y)
    clf.module_.double()
    clf.predict(X)
    clf.set_params(dtype="float64").fit(X, y)
    assert clf.params_.dtype == np.float64
    assert_one_module(clf)


def test_training_on_after_assigned_parameters():
    clf = classifier(warm_start=True, method="gd", max_iter=1).fit(X, y)
    zeros = {name: torch.zeros_like(p) for name, p in clf.module_.state_dict().items()}
    clf.module_.load_state_dict(zeros, assign=True)
    np.testing.assert_allclose(clf.predict_proba(X), 1 / 3, rtol=1e-6)
    clf.fit(X, y)
    assert np.abs(clf.params_).max() < 0.1
    assert_one_module(clf)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_pickle_holds_the_parameters_and_not_the_data(optimizer):
    X, y = blobs(n=4000)
    clf = classifier(module=Deep, optimizer=optimizer, lr=1e-3, max_iter=2)
    size = len(pickle.dumps(clf.fit(X, y, X_val=X, y_val=y)))
    # θ is in params_ and in the module; Adam has two moments besides.
    copies = {"sgd": 2, "adam": 4}[optimizer]
    assert size < (copies + 1) * clf.params_.nbytes + 50_000
    assert X.nbytes > 100_000
    del clf.net_.history[:]
    assert len(pickle.dumps(clf)) < copies * clf.params_.nbytes + 50_000


def test_the_net_is_trained_inside_its_estimator_only():
    clf = classifier().fit(X, y)
    with pytest.raises(RuntimeError, match=r"warm_start=True to go on"):
        clf.net_.partial_fit(X.astype(np.float32), y)
