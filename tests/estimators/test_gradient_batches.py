"""Iterations that see gradient_batch_size fresh examples each."""

import copy
import pickle

import numpy as np
import pytest
import torch
from joblib import Memory
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn
from torch.utils import data

from flatmin.noise import METHODS, SGD
from flatmin.risk import EmpiricalRisk

from ._problems import blobs, classifier, flat, plane, regressor

X, y = blobs()
B = 24


@pytest.fixture
def drawn(monkeypatch):
    """The batches that were drawn, each an array of indices."""
    seen, subset = [], EmpiricalRisk.subset

    def spy(self, indices):
        seen.append(indices.numpy())
        return subset(self, indices)

    monkeypatch.setattr(EmpiricalRisk, "subset", spy)
    return seen


def batches_of(drawn, n):
    """Return the batches that the last n iterations saw."""
    return np.array(drawn[-n - 1 : -1])  # behind them that of the last row's noise


def test_gd_is_the_loop_over_the_batches_by_hand(drawn):
    weights = np.linspace(0, 2, 60)
    settings = {"method": "gd", "dtype": "float64", "gradient_batch_size": B}
    start = classifier(**settings, max_iter=0).fit(X, y)
    drawn.clear()
    clf = classifier(**settings).fit(X, y, weights)
    module = copy.deepcopy(start.module_)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scale = torch.as_tensor(weights / weights.mean())
    for chosen in batches_of(drawn, 30):
        assert len(set(chosen)) == B
        losses = nn.functional.cross_entropy(
            module(torch.as_tensor(X[chosen])),
            torch.as_tensor(y[chosen]),
            reduction="none",
        )
        optimizer.zero_grad()
        (losses * scale[chosen]).mean().backward()
        optimizer.step()
    np.testing.assert_allclose(clf.params_, flat(module), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [60, 61, 10**6])
def test_a_batch_of_all_is_no_batch(size):
    whole = classifier(method="gld_full").fit(X, y)
    clf = classifier(method="gld_full", gradient_batch_size=size).fit(X, y)
    np.testing.assert_array_equal(clf.params_, whole.params_)
    assert clf.history_.equals(whole.history_)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "svag"])
def test_every_method_trains_and_is_reproducible(method):
    settings = {"method": method, "gradient_batch_size": B, "batch_size": 4}
    fits = [classifier(**settings, random_state=s).fit(X, y) for s in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0].params_, fits[1].params_)
    assert fits[0].history_.equals(fits[1].history_)
    assert not np.array_equal(fits[0].params_, fits[2].params_)
    numbers = fits[0].history_.select_dtypes("number")
    if method == "alpha_stable":  # which has no second moment
        del numbers["noise_norm"]
    assert np.isfinite(numbers).all(axis=None)
    assert fits[0].score(X, y) > 0.6


def test_every_method_sees_the_same_batches(drawn):
    seen = []
    for method in ("gd", "gld_full", "gld_hessian"):
        classifier(method=method, gradient_batch_size=B).fit(X, y)
        seen.append(batches_of(drawn, 30))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    assert len(np.unique(np.sort(seen[0]), axis=0)) == 30
    counts = np.bincount(seen[0].ravel(), minlength=60)  # 12 each, variance 7.2
    assert ((counts - 12) ** 2 / 7.2).mean() == pytest.approx(1, abs=0.75)


def test_the_record_does_not_change_the_run():
    settings = {"method": "gld_leading", "gradient_batch_size": B, "batch_size": 4}
    runs = [classifier(**settings, record_every=k).fit(X, y) for k in (1, 7, 1000)]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.params_, runs[0].params_)


def test_the_history_is_of_the_full_risk():
    clf = classifier(method="gld_full", gradient_batch_size=B, dtype="float64")
    last = clf.fit(X, y).history_.iloc[-1]
    loss, gradient = clf.risk_.value_and_gradient(torch.as_tensor(clf.params_))
    assert clf.risk_.n_examples == 60
    assert last["loss"] == pytest.approx(float(loss))
    assert last["gradient_norm"] == pytest.approx(float(gradient.norm()))
    assert last["train_score"] == clf.score(X, y)


def test_the_noise_in_the_history_is_that_in_a_batch():
    law = SGD(sampling="without_replacement", batch_size=B)
    clf = classifier(method=law, gradient_batch_size=B, warmup={"method": law})
    history = clf.set_params(warmup__max_iter=10).fit(X, y).history_
    assert (history["noise_norm"] == 0).all()  # of all 24 examples there
    assert (classifier(method=law).fit(X, y).history_["noise_norm"] > 0).all()


@pytest.mark.parametrize("method", ["gd", "gld_full", "sgd", "gld_hessian"])
def test_a_warm_start_continues(method):
    settings = {"method": method, "refresh_every": 5, "gradient_batch_size": B}
    whole = classifier(max_iter=40, **settings).fit(X, y)
    parts = classifier(max_iter=20, warm_start=True, **settings).fit(X, y)
    for twin in (copy.deepcopy(parts), pickle.loads(pickle.dumps(parts)), parts):
        twin.fit(X, y)
        np.testing.assert_array_equal(twin.params_, whole.params_)
        assert twin.history_.equals(whole.history_)


def test_a_clone_has_it_and_trains_alike():
    clf = classifier(gradient_batch_size=B).fit(X, y)
    twin = clone(clf)
    assert twin.gradient_batch_size == B
    np.testing.assert_array_equal(twin.fit(X, y).params_, clf.params_)


def test_the_warmup_sees_batches_too_and_is_remembered(tmp_path, drawn):
    settings = {
        "warmup": {"max_iter": 10},
        "gradient_batch_size": B,
        "method": "gld_full",
    }
    plain = classifier(**settings).fit(X, y)
    # Two laws are checked, and the last row has the noise in a batch of its own.
    assert len(drawn) == 2 + 10 + 30 + 1
    assert len(np.unique(np.sort(drawn[2:]), axis=0)) == 41
    memory = Memory(tmp_path, verbose=0)
    for n_drawn in (43, 33):
        drawn.clear()
        clf = classifier(memory=memory, **settings).fit(X, y)
        np.testing.assert_array_equal(clf.params_, plain.params_)
        assert len(drawn) == n_drawn
    other = classifier(memory=memory, **{**settings, "gradient_batch_size": 30})
    assert other.fit(X, y).history_["loss"][1] != plain.history_["loss"][1]


def test_a_grid_over_it():
    grid = GridSearchCV(
        classifier(method="gld_full", batch_size=4),
        {"gradient_batch_size": [8, None], "method": ["gd", "gld_full"]},
        cv=2,
    ).fit(X, y)
    best = classifier(batch_size=4, **grid.best_params_).fit(X, y)
    np.testing.assert_array_equal(grid.best_estimator_.params_, best.params_)
    assert len(set(grid.cv_results_["mean_test_score"])) > 1


@pytest.mark.parametrize("method", ["gd", "gld_full", "sgd", "gld_hessian"])
def test_of_a_data_set(method):
    settings = {"method": method, "dtype": "float64", "gradient_batch_size": B}
    arrays = classifier(**settings).fit(X, y)
    examples = data.TensorDataset(torch.as_tensor(X), torch.as_tensor(y))
    streamed = classifier(**settings).fit(examples)
    np.testing.assert_allclose(streamed.params_, arrays.params_, rtol=1e-9, atol=1e-12)


def test_a_data_set_is_read_b_examples_an_iteration():
    class Counted(data.Dataset):
        reads = 0

        def __len__(self):
            return len(X)

        def __getitem__(self, index):
            self.reads += 1
            return X[index], y[index]

    reads = []
    for max_iter in (10, 20):
        examples = Counted()
        settings = {"max_iter": max_iter, "record_every": 1000}
        classifier(method="gld_full", gradient_batch_size=B, **settings).fit(examples)
        reads.append(examples.reads)
    assert reads[1] - reads[0] == 10 * B


def test_a_regressor():
    X, y = plane(n_targets=2)
    reg = regressor(gradient_batch_size=B, method="gld_full", max_iter=60).fit(X, y)
    assert reg.score(X, y) > 0.3


@pytest.mark.parametrize("size", [0, -1, 2.5, "all"])
def test_what_it_cannot_be(size):
    with pytest.raises(ValueError, match=f"'gradient_batch_size' .* Got {size!r}"):
        classifier(gradient_batch_size=size).fit(X, y)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"method": SGD(sampling="epoch")}, "the number of examples, 8"),
        ({"warmup": {"method": SGD(sampling="epoch"), "max_iter": 3}}, "examples, 8"),
        ({"method": "gld_leading"}, "at least two whole minibatches"),
    ],
)
def test_a_law_that_needs_more_examples(settings, match):
    clf = classifier(batch_size=10, gradient_batch_size=8, **settings)
    with pytest.raises(
        ValueError, match=f"{match}.* An iteration sees gradient_batch_size=8 examples"
    ):
        clf.fit(X, y)
    assert not hasattr(clf, "params_")
    clf.set_params(gradient_batch_size=20).fit(X, y)
