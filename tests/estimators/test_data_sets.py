"""Data sets that are read a chunk at a time, against the same data as arrays."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import Memory
from skorch.callbacks import EpochScoring
from torch import nn
from torch.utils import data

from flatmin.dynamics import run_warmup
from flatmin.estimators import _warmup
from flatmin.risk.data.chunks import choose_chunk_size

from ._problems import Images, Tokens, blobs, classifier, plane, regressor

X, y = blobs()
X_val, y_val = blobs(n=25, seed=1)
WEIGHTS = np.linspace(0, 2, len(y))


def tensors(X, y):
    return data.TensorDataset(torch.as_tensor(X), torch.as_tensor(y))


class Counted(data.Dataset):
    """Examples as rows of arrays, and how often they are read."""

    def __init__(self, X=X, y=y):
        self.X, self.y, self.reads = X, y, 0

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        self.reads += 1
        return self.X[index], self.y[index]


class Augmented(Counted):
    def __getitem__(self, index):
        return self.X[index] + np.random.rand(), self.y[index]  # noqa: NPY002


class Stream(data.IterableDataset):
    def __iter__(self):
        return iter(zip(X, y, strict=True))


SOURCES = {
    "tensors": tensors,
    "data set": Counted,
    "loader": lambda X, y: data.DataLoader(Counted(X, y), batch_size=7),
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks that are ragged, where the data would else be one."""
    monkeypatch.setattr(
        "flatmin.risk.data.chunks.choose_chunk_size",
        lambda n, numbers: min(23, choose_chunk_size(n, numbers)),
    )
    monkeypatch.setattr("flatmin.estimators._inputs.N_LOOKED_AT", 16)


def assert_same_run(streamed, arrays):
    """Same θ and same history, to rounding."""
    np.testing.assert_allclose(streamed.params_, arrays.params_, rtol=1e-10, atol=1e-13)
    pd.testing.assert_frame_equal(streamed.history_, arrays.history_, rtol=1e-8)


@every_source
@pytest.mark.parametrize("method", ["gd", "gld_full", "sgd"])
def test_a_classifier_is_trained_as_on_arrays(method, source):
    labels = np.array([7, -2, 5])
    settings = {"method": method, "dtype": "float64", "class_weight": "balanced"}
    arrays = classifier(**settings).fit(
        X, labels[y], WEIGHTS, X_val=X_val, y_val=labels[y_val]
    )
    streamed = classifier(**settings).fit(
        source(X, labels[y]),
        sample_weight=WEIGHTS,
        X_val=source(X_val, labels[y_val]),
    )
    assert_same_run(streamed, arrays)
    np.testing.assert_array_equal(streamed.classes_, [-2, 5, 7])
    assert streamed.n_features_in_ == 4
    assert streamed.risk_.n_examples == len(X)
    assert streamed.risk_.chunk_size == 23
    others = source(X_val, labels[y_val])
    for model in (streamed, arrays):
        for name in ("predict", "predict_proba", "decision_function"):
            ask = getattr(model, name)
            np.testing.assert_allclose(ask(others), ask(X_val), rtol=1e-12)
        score = model.score(X_val, labels[y_val])
        assert model.score(others) == score < 1
        weighted = model.score(X_val, labels[y_val], sample_weight=WEIGHTS[:25])
        assert model.score(others, sample_weight=WEIGHTS[:25]) == weighted != score


@every_source
@pytest.mark.parametrize("n_targets", [None, 2])
@pytest.mark.parametrize("method", ["gd", "gld_full", "sgd"])
def test_a_regressor_is_trained_as_on_arrays(method, n_targets, source):
    X, y = plane(n_targets=n_targets)
    settings = {"method": method, "dtype": "float64"}
    arrays = regressor(**settings).fit(X, y, WEIGHTS, X_val=X[:9], y_val=y[:9])
    streamed = regressor(**settings).fit(
        source(X, y), sample_weight=WEIGHTS, X_val=source(X[:9], y[:9])
    )
    assert_same_run(streamed, arrays)
    np.testing.assert_allclose(streamed.predict(source(X, y)), arrays.predict(X))
    assert streamed.score(source(X, y)) == pytest.approx(arrays.score(X, y))
    weighted = arrays.score(X, y, WEIGHTS)
    assert streamed.score(source(X, y), sample_weight=WEIGHTS) == pytest.approx(
        weighted
    )


def test_images_and_whole_numbers():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 1, 5, 5)).astype(np.float32)
    tokens = rng.integers(0, 10, size=(30, 6))
    for module, inputs in ((Images, images), (Tokens, tokens)):
        labels = np.arange(30) % 2
        arrays = classifier(module=module, method="gd").fit(inputs, labels)
        streamed = classifier(module=module, method="gd").fit(tensors(inputs, labels))
        np.testing.assert_allclose(streamed.params_, arrays.params_, rtol=1e-4)
        assert streamed.n_features_in_ == inputs.shape[1]


def test_a_class_may_come_last():
    """Labels are read, since an attribute of that name may not be what is given."""

    class Relabelled(Counted):
        targets = np.zeros(60, dtype=int)

    labels = np.where(np.arange(60) == 59, 3, y % 2)
    clf = classifier(module_params=None).fit(Relabelled(X, labels))
    np.testing.assert_array_equal(clf.classes_, [0, 1, 3])


def test_one_class_is_noticed():
    with pytest.raises(ValueError, match=r"at least two classes\. Got one class: 0"):
        classifier().fit(Counted(X, np.zeros_like(y)))


class Observed(nn.Linear):
    """Notes how many examples come at a time."""

    seen = []  # noqa: RUF012 - copies of the module write here too

    def forward(self, X):
        self.seen.append(len(X))
        return super().forward(X)


def test_callbacks_score_a_chunk_at_a_time():
    scoring = EpochScoring("accuracy", on_train=True, lower_is_better=False)
    Observed.seen.clear()
    clf = classifier(
        module=Observed,
        module_params={"in_features": 4, "out_features": 3},
        callbacks=[scoring],
    ).fit(Counted())
    clf.net_.predict(X.astype(np.float32))
    assert max(Observed.seen) == 23


def test_callbacks_score_data_sets_too():
    def fitted(*given, **validation):
        scoring = [
            ("on_train", EpochScoring("accuracy", on_train=True, name="train_acc")),
            ("valid", EpochScoring("accuracy", name="valid_acc")),
        ]
        return classifier(callbacks=scoring, dtype="float64").fit(*given, **validation)

    arrays = fitted(X, y, X_val=X_val, y_val=y_val)
    streamed = fitted(Counted(), X_val=Counted(X_val, y_val))
    for name in ("train_acc", "valid_acc", "valid_loss", "train_score"):
        got, expected = (model.net_.history[:, name] for model in (streamed, arrays))
        np.testing.assert_allclose(got, expected)


@pytest.mark.parametrize("store_data", [True, False])
@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_copies_leave_the_data_set_behind(how, store_data):
    class Unpicklable(Counted):  # a class of a function's own
        def __deepcopy__(self, memo):
            raise AssertionError("the data set is copied")

    clf = classifier(store_data=store_data, warm_start=True)
    clf.fit(Unpicklable(), X_val=Unpicklable(X_val, y_val))
    assert (clf.risk_ is None) != store_data
    twin = how(clf)
    assert twin.risk_ is None
    np.testing.assert_array_equal(twin.predict(Counted()), clf.predict(X))
    np.testing.assert_array_equal(
        twin.fit(Counted()).params_, clf.fit(Unpicklable()).params_
    )


def test_a_warm_start_may_go_from_arrays_to_a_data_set():
    settings = {"dtype": "float64", "method": "gd", "warm_start": True}
    both = classifier(**settings).fit(X, y).fit(Counted())
    assert_same_run(both, classifier(**settings).fit(X, y).fit(X, y))
    with pytest.raises(ValueError, match="labels that the training data did not"):
        both.fit(Counted(X, y + 1))


@pytest.mark.parametrize("streamed", ["training", "validation"])
def test_the_memory_is_for_arrays(streamed, tmp_path, monkeypatch):
    done = []

    def counted(*args, **settings):
        done.append(args)
        return run_warmup(*args, **settings)

    monkeypatch.setattr(_warmup, "run_warmup", counted)
    memory = Memory(tmp_path, verbose=0)
    clf = classifier(warmup={"max_iter": 5}, memory=memory)
    given = (Counted(),) if streamed == "training" else (X, y)
    validation = {"X_val": Counted(X_val, y_val)} if streamed == "validation" else {}
    for _ in range(2):
        clf.fit(*given, **validation)
    assert len(done) == 2
    assert not list(tmp_path.rglob("*.pkl"))


def test_the_global_generators_are_left(global_state):
    before = global_state()
    clf = classifier(warmup={"max_iter": 5}).fit(Counted(), X_val=Counted(X_val, y_val))
    clf.score(Counted())
    assert global_state() == before


def test_one_pass_checks_and_one_pass_scores():
    examples = Counted()
    clf = classifier().fit(X, y)
    source_is_tried = 2 * len(X)  # up to 64 are read twice, whether they stay the same
    clf.score(examples)
    assert examples.reads == len(X) + source_is_tried
    broken = Counted(np.where(np.arange(60)[:, None] == 59, np.nan, X), y)
    with pytest.raises(ValueError, match="X contains NaN"):
        classifier().fit(broken)
    assert broken.reads == len(X) + source_is_tried


class Ragged(Counted):
    def __getitem__(self, index):
        return self.X[index][: 3 if index >= 48 else 4], self.y[index]


@pytest.mark.parametrize("make", [classifier, regressor])
@pytest.mark.parametrize(
    ("given", "settings", "error", "match"),
    [
        (
            lambda: data.DataLoader(Counted(), shuffle=True),
            {},
            ValueError,
            r"RandomSampler; make it with shuffle=False",
        ),
        (
            lambda: data.DataLoader(Counted(), batch_size=7, drop_last=True),
            {},
            ValueError,
            "drop_last=True; make it",
        ),
        (Stream, {}, TypeError, "the iterable Stream; use one with __len__"),
        (lambda: data.DataLoader(Stream()), {}, TypeError, "the iterable Stream"),
        (Augmented, {}, ValueError, "Augmented, which gives others when it is read"),
        (Counted, {"y": y}, ValueError, "y must be None with a Counted, .* Got ndarr"),
        (lambda: Counted(X[:0], y[:0]), {}, ValueError, "at least one example"),
        (lambda: Counted(X[:1], y[:1]), {}, ValueError, "two examples or more. Got 1"),
        (Ragged, {}, ValueError, "X has 3 features, .* expecting 4"),
        (
            lambda: data.TensorDataset(torch.as_tensor(X)),
            {},
            TypeError,
            r"pairs \(x, y\)",
        ),
        (
            lambda: Counted(X, y.astype(str)),
            {},
            TypeError,
            "collate to two tensors",
        ),
        (
            Counted,
            {"sample_weight": np.ones(3)},
            ValueError,
            r"sample_weight must have shape \(60,\)",
        ),
        (Counted, {"X_val": Stream()}, TypeError, "the iterable Stream"),
        (
            Counted,
            {"X_val": Counted(), "y_val": y},
            ValueError,
            "must be None with a Counted",
        ),
        (Counted, {"X_val": X}, ValueError, "come together. Got y_val=None"),
        (Counted, {"y_val": y}, ValueError, "come together. Got X_val=None"),
        (
            Counted,
            {"X_val": Counted(X[:, :2])},
            ValueError,
            "X has 2 features, .* expecting 4",
        ),
    ],
)
def test_what_cannot_be_streamed(make, given, settings, error, match):
    model, called = make(metrics={"a": lambda risk, theta: called.append(1)}), []
    with pytest.raises(error, match=match):
        model.fit(given(), **settings)
    assert not hasattr(model, "params_")
    assert not called


def test_what_cannot_be_predicted():
    clf = classifier().fit(X, y)
    with pytest.raises(ValueError, match="RandomSampler"):
        clf.predict(data.DataLoader(Counted(), shuffle=True))
    with pytest.raises(ValueError, match=r"X has 2 features, .* expecting 4"):
        clf.predict(Counted(X[:, :2]))
    with pytest.raises(ValueError, match="y must be None"):
        clf.score(Counted(), y)
    with pytest.raises(ValueError, match="not fitted"):
        classifier().score(Counted())


def test_the_default_network_fits_the_examples():
    clf = classifier(module_params=None, max_iter=1).fit(Counted())
    first = next(p for p in clf.module_.modules() if isinstance(p, nn.Linear))
    assert first.in_features == 4
