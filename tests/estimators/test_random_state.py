"""One seed in, the same bits out, and nobody else's generator moved."""

import numpy as np
import pytest
import torch
from skorch.callbacks import EpochScoring
from torch import nn

from flatmin.noise import METHODS

from ._problems import blobs, classifier

X, y = blobs()
INPUTS = X.astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_bits(method):
    fits = [classifier(method=method).fit(X, y) for _ in range(2)]
    np.testing.assert_array_equal(fits[0].params_, fits[1].params_)
    assert fits[0].history_.equals(fits[1].history_)


def test_the_global_generators_do_not_matter():
    first = classifier().fit(X, y).params_
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002 - the global generator is the point
    np.testing.assert_array_equal(classifier().fit(X, y).params_, first)


@pytest.mark.parametrize("method", ["sgd", "gd"])
def test_different_seeds_differ(method):
    # gd has no noise; its initialisation differs.
    seeds = (0, 1, None, None)
    fits = [classifier(method=method, random_state=s).fit(X, y).params_ for s in seeds]
    assert len({params.tobytes() for params in fits}) == 4


def test_noise_has_its_own_seed():
    theta = np.zeros(67)
    fits = [
        classifier(params_init=theta, random_state=seed).fit(X, y).params_
        for seed in (0, 1)
    ]
    assert not np.array_equal(*fits)


def test_a_random_state_object_is_drawn_from():
    rng = np.random.RandomState(0)
    first = classifier(random_state=rng).fit(X, y).params_
    second = classifier(random_state=rng).fit(X, y).params_
    np.testing.assert_array_equal(first, classifier().fit(X, y).params_)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("method", METHODS)
def test_fit_leaves_the_global_generators(method, global_state):
    before = global_state()
    classifier(method=method, warmup={"max_iter": 10}).fit(X, y, X_val=X, y_val=y)
    assert global_state() == before


def test_prediction_leaves_the_global_generators(global_state):
    clf = classifier().fit(X, y)
    before = global_state()
    clf.predict(X)
    clf.predict_proba(X)
    clf.score(X, y)
    clf.net_.predict(INPUTS)
    assert global_state() == before


def test_callbacks_that_predict_leave_the_global_generators(global_state):
    scoring = EpochScoring("accuracy", lower_is_better=False)
    before = global_state()
    with_scores = classifier(callbacks=[scoring]).fit(X, y, X_val=X, y_val=y)
    assert global_state() == before
    np.testing.assert_array_equal(with_scores.params_, classifier().fit(X, y).params_)


def test_a_failed_fit_leaves_the_global_generators(global_state):
    def broken():
        torch.rand(3)
        raise RuntimeError("no module")

    before = global_state()
    with pytest.raises(RuntimeError, match="no module"):
        classifier(module=broken).fit(X, y)
    assert global_state() == before


def test_a_metric_may_draw_from_the_global_generator():
    def draw(risk, theta):
        return torch.rand(()) + np.random.rand()  # noqa: NPY002

    clf = classifier(metrics={"draw": draw}).fit(X, y)
    np.testing.assert_array_equal(clf.params_, classifier().fit(X, y).params_)


def test_the_module_is_initialised_as_torch_would():
    clf = classifier(module=nn.Linear, module_params={"in_features": 4}, max_iter=0)
    clf.set_params(module__out_features=3).fit(X, y)
    bound = 1 / np.sqrt(4)
    assert (np.abs(clf.params_) <= bound).all()
    assert np.abs(clf.params_).max() > bound / 2
