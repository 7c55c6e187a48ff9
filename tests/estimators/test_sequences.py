"""Several labels an example, and labels that are left out, in a classifier."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import KFold, cross_val_score
from torch import nn
from torch.utils.data import TensorDataset

from flatmin import NoisyDiffusionClassifier

N, T, V = 12, 5, 4
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, V, (N, T))
# Labels that are not 0, 1, 2, of which some are left out: whole examples, too.
TAGS = np.array([3, 5, 9])[TOKENS % 3]
TAGS[RNG.random((N, T)) < 0.3] = -100
TAGS[4] = -100
NEXT = TOKENS.copy()
NEXT[RNG.random((N, T)) < 0.3] = -100


def tagger(n_classes=3, second=True):
    """Return a network of tokens, with the classes on the second axis, or the last."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Embedding(V, 6), nn.Linear(6, n_classes)

        def forward(self, x):
            logits = self.head(self.body(x).tanh())
            return logits.transpose(1, 2) if second else logits

    return Tagger


def classifier(module, **settings):
    settings = {"method": "gd", "lr": 0.5, "max_iter": 60, **settings}
    return NoisyDiffusionClassifier(
        module, dtype="float64", random_state=0, record_every=20, **settings
    )


def logits_of(clf, X):
    with torch.no_grad():
        return clf.module_(torch.as_tensor(X)).numpy()


@pytest.fixture(scope="module")
def tags():
    return classifier(tagger()).fit(TOKENS, TAGS)


def test_labels_of_positions(tags):
    np.testing.assert_array_equal(tags.classes_, [3, 5, 9])
    logits, counted = logits_of(tags, TOKENS), TAGS != -100
    predicted = np.array([3, 5, 9])[logits.argmax(1)]
    np.testing.assert_array_equal(tags.predict(TOKENS), predicted)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(tags.predict_proba(TOKENS), p, rtol=1e-12)
    several = tags.predict_proba(TOKENS, params=tags.params_[None])
    np.testing.assert_allclose(several, p, rtol=1e-12)
    right = predicted == TAGS
    assert tags.score(TOKENS, TAGS) == right[counted].mean()
    weights = np.arange(N, dtype=float)
    table = np.broadcast_to(weights[:, None], (N, T))[counted]
    found = tags.score(TOKENS, TAGS, sample_weight=weights)
    assert found == pytest.approx(np.average(right[counted], weights=table))
    own = np.searchsorted([3, 5, 9], np.where(counted, TAGS, 3))
    losses = -np.log(np.take_along_axis(p, own[:, None], 1)[:, 0])[counted]
    last = tags.history_.iloc[-1]
    assert last["loss"] == pytest.approx(losses.mean())
    assert last["train_score"] == right[counted].mean()


def test_what_else_reads_them(tags):
    half = tags.score(TOKENS[:6], TAGS[:6])
    held_out = clone(tags).fit(TOKENS, TAGS, X_val=TOKENS[:6], y_val=TAGS[:6])
    assert held_out.history_["valid_score"].iloc[-1] == half
    np.testing.assert_array_equal(tags.net_.predict(TOKENS), tags.predict(TOKENS))
    p = tags.net_.predict_proba(TOKENS)
    np.testing.assert_allclose(p, tags.predict_proba(TOKENS), rtol=1e-12)
    logits = torch.as_tensor(logits_of(tags, TOKENS))
    loss = float(tags.net_.get_loss(logits, torch.as_tensor(TAGS)))
    examples = tags.risk_.value(tags.risk_.params())
    assert loss == pytest.approx(float(examples))
    dataset = TensorDataset(torch.as_tensor(TOKENS), torch.as_tensor(TAGS))
    assert tags.score(dataset) == tags.score(TOKENS, TAGS)
    cut = cross_val_score(tags, TOKENS, TAGS, cv=KFold(3))
    for score, (train, test) in zip(cut, KFold(3).split(TOKENS), strict=True):
        alone = clone(tags).fit(TOKENS[train], TAGS[train])
        assert score == alone.score(TOKENS[test], TAGS[test])


def test_the_next_token():
    tokens = np.where(TOKENS == V - 1, 0, TOKENS)  # one that does not occur
    labels = np.where(NEXT == -100, -100, tokens)
    clf = classifier(tagger(V, second=False), loss="next_token").fit(tokens, labels)
    np.testing.assert_array_equal(clf.classes_, np.arange(V))
    logits = logits_of(clf, tokens)
    np.testing.assert_array_equal(clf.predict(tokens), logits.argmax(2))
    assert clf.predict_proba(tokens).shape == (N, V, T)
    np.testing.assert_allclose(clf.predict_proba(tokens).sum(1), 1)
    right = (logits.argmax(2)[:, :-1] == labels[:, 1:])[labels[:, 1:] != -100]
    assert clf.score(tokens, labels) == right.mean()
    assert clf.history_["train_score"].iloc[-1] == right.mean()
    np.testing.assert_array_equal(clf.net_.predict(tokens), clf.predict(tokens))
    with pytest.raises(ValueError, match="Tokens must be integers"):
        clone(clf).fit(tokens, labels.astype(float))


@pytest.mark.parametrize("class_weight", [None, "balanced", {1: 1.0, 2: 5.0, 7: 2.0}])
def test_one_label_that_is_left_out(class_weight):
    """It is as if the example were not there."""
    X = RNG.normal(size=(30, 3))
    y = np.array([1, 2, 7])[np.arange(30) % 3]
    y[::4] = -100
    kept = y != -100
    options = {"class_weight": class_weight, "lr": 0.2, "max_iter": 30}
    module = {"module_params": {"hidden_layer_sizes": 4}}
    clf = classifier(None, **module, **options).fit(X, y)
    alone = classifier(None, **module, **options).fit(X[kept], y[kept])
    np.testing.assert_array_equal(clf.classes_, [1, 2, 7])
    np.testing.assert_allclose(clf.params_, alone.params_, rtol=1e-9)
    assert clf.score(X, y) == alone.score(X[kept], y[kept])
    weights = np.linspace(1, 2, 30)
    found = clf.score(X, y, sample_weight=weights)
    right = clf.predict(X)[kept] == y[kept]
    assert found == pytest.approx(np.average(right, weights=weights[kept]))
    scores = clf.history_["train_score"], alone.history_["train_score"]
    np.testing.assert_allclose(*scores, rtol=1e-12)


def test_another_label_that_is_left_out():
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    y = np.where(TAGS == -100, -1, TAGS)
    same = classifier(tagger(), loss=loss).fit(TOKENS, y)
    usual = classifier(tagger()).fit(TOKENS, TAGS)
    np.testing.assert_array_equal(same.params_, usual.params_)
    assert same.score(TOKENS, y) == usual.score(TOKENS, TAGS)
    with pytest.raises(ValueError, match=r"from 0, so that.* with ignore_index=0"):
        classifier(tagger(), loss=nn.CrossEntropyLoss(ignore_index=0)).fit(TOKENS, TAGS)


@pytest.mark.parametrize(
    ("settings", "y", "match"),
    [
        (
            {"loss": "binary_cross_entropy"},
            TAGS,
            "Several labels an example.*Got loss='b",
        ),
        ({"class_weight": "balanced"}, TAGS, r"pass loss=nn.CrossEntropyLoss\(weight"),
        ({"module": None}, TAGS, "1d array"),
        ({}, np.full_like(TAGS, -100), "at least one label. Got none that counts"),
        ({}, np.where(TAGS > 3, -100, TAGS), "at least two classes. Got one class: 3"),
        ({}, TAGS[:, :4], r"class indices of shape \('n', 5\). Got \('n', 4\)"),
    ],
)
def test_what_cannot_be(settings, y, match):
    settings = {"module": tagger(), **settings}
    with pytest.raises(ValueError, match=match):
        classifier(**settings).fit(TOKENS, y)


def test_a_score_without_labels(tags):
    with pytest.raises(ValueError, match="Got y in which all are left out"):
        tags.score(TOKENS[4:5], TAGS[4:5])
    with pytest.raises(ValueError, match=r"shape of the predictions, \(12, 5\)"):
        tags.score(TOKENS, TAGS[:, :3])
    with pytest.raises(ValueError, match="labels that the training data did not"):
        clone(tags).fit(TOKENS, TAGS, X_val=TOKENS, y_val=np.full_like(TAGS, 4))
