"""X as a mapping or a tuple: the same fit as of one array, and what goes with it."""

import pickle
from collections import OrderedDict
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from skorch.callbacks import EpochScoring
from skorch.helper import SliceDict
from torch import nn
from torch.utils import data

from flatmin import (
    CurvatureAnalyzer,
    NoiseCovarianceAnalyzer,
    NoisyDiffusionClassifier,
    NoisyDiffusionRegressor,
    SharpnessScorer,
)

RNG = np.random.default_rng(0)
N = 24
A, B = RNG.normal(size=(N, 3)), RNG.normal(size=(N, 2))
MASK = RNG.random(N) < 0.5
Y = np.where(A[:, 0] + B[:, 0] > 0, "up", "down")


class One(nn.Module):
    """Both parts in one array, and the mask as a third."""

    def __init__(self):
        super().__init__()
        self.linear, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = torch.tanh(self.linear(x[:, :5]))
        return self.head(hidden) * torch.where(x[:, 5:] > 0, 2.0, 1.0)


class Parts(One):
    def forward(self, a, b, mask):
        assert mask.dtype == torch.bool
        x = torch.cat([a, b, mask.unsqueeze(1).to(a.dtype)], 1)
        return {"hidden": x, "logits": super().forward(x)}


class Nested(Parts):
    def forward(self, both, mask):
        return super().forward(both[0], both[1]["b"], mask)


ONE = np.column_stack([A, B, MASK])
TREES = {
    "mapping": (Parts, {"b": B, "a": A, "mask": MASK}),
    "tuple": (Parts, (A, B, MASK)),
    "nested": (Nested, {"both": (A, OrderedDict(b=B)), "mask": MASK}),
    "tensors": (Parts, (torch.as_tensor(A), torch.as_tensor(B), torch.as_tensor(MASK))),
    "pandas": (
        Parts,
        {"a": pd.DataFrame(A), "b": pd.DataFrame(B), "mask": pd.Series(MASK)},
    ),
    "SliceDict": (Parts, SliceDict(a=A, b=B, mask=MASK)),
}


def make(module, **settings):
    settings = {"max_iter": 12, "record_every": 4, "lr": 0.3, **settings}
    return NoisyDiffusionClassifier(module, dtype="float64", random_state=0, **settings)


@cache
def one(**settings):
    """The same of one array; read only."""
    return make(One, **settings).fit(ONE, Y, X_val=ONE, y_val=Y)


NOISE = {"method": "gld_hessian", "gradient_batch_size": 9}


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in TREES), ("nested", NOISE)]
)
def test_the_same_fit_as_of_one_array(name, settings):
    module, X = TREES[name]
    found = make(module, **settings).fit(X, Y, X_val=X, y_val=Y)
    expected = one(**settings)
    np.testing.assert_allclose(found.params_, expected.params_, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(ONE))
    np.testing.assert_allclose(
        found.history_.drop(columns="phase"),
        expected.history_.drop(columns="phase"),
        rtol=1e-7,
    )
    assert (found.predict(X) == expected.predict(ONE)).all()
    assert found.score(X, Y) == expected.score(ONE, Y)
    assert not hasattr(found, "n_features_in_")
    risk = found.make_risk(X, Y)
    assert float(risk.value(risk.params())) == pytest.approx(
        found.history_["loss"].iloc[-1]
    )
    # skorch's own prediction, from what the module takes
    net = pickle.loads(pickle.dumps(found)).net_
    if name != "pandas":
        assert (net.predict(X) == found.predict(X)).all()
        np.testing.assert_allclose(net.predict_proba(X), found.predict_proba(X))


@pytest.mark.parametrize("name", ["mapping", "tuple", "nested"])
def test_callbacks_see_what_the_module_takes(name):
    module, X = TREES[name]
    seen = []

    class Scores(EpochScoring):
        def on_train_begin(self, net, X=None, y=None, **kwargs):
            seen.append((type(X), type(y)))
            super().on_train_begin(net, X=X, y=y, **kwargs)

    callbacks = [
        (
            "accuracy",
            Scores("accuracy", lower_is_better=False, name="acc", use_caching=False),
        ),
        (
            "train",
            EpochScoring("accuracy", name="tacc", on_train=True, use_caching=False),
        ),
    ]
    clf = make(module, callbacks=callbacks).fit(X, Y, X_val=X, y_val=Y)
    assert clf.net_.history[-1, "acc"] == clf.score(X, Y)
    assert clf.net_.history[-1, "tacc"] == clf.score(X, Y)
    assert seen == [(tuple if name == "tuple" else dict, np.ndarray)]


def test_cross_validation_slices_a_slice_dict():
    X = SliceDict(a=A, b=B, mask=MASK)
    found = cross_val_score(make(Parts), X, Y, cv=3)
    assert (found == cross_val_score(make(One), ONE, Y, cv=3)).all()
    scoring = {"accuracy": "accuracy", "flat": SharpnessScorer(measure="trace")}
    grid = {"method": ["gd", "gld_full"]}
    found, expected = (
        GridSearchCV(make(module), grid, scoring=scoring, refit="accuracy", cv=2)
        .fit(given, Y)
        .cv_results_
        for module, given in ((Parts, X), (One, ONE))
    )
    for column in ("mean_test_accuracy", "mean_test_flat"):
        np.testing.assert_allclose(found[column], expected[column])


class Items(data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"a": A[i], "b": B[i], "mask": MASK[i], "labels": int(Y[i] == "up")}


def test_a_data_set_of_mappings():
    targets = (Y == "up").astype(int)
    X = {"a": A, "b": B, "mask": MASK}
    expected = make(Parts).fit(X, targets)
    loader = data.DataLoader(Items(), batch_size=5)
    held = {**X, "labels": targets}
    for given in (Items(), loader, held):
        clf = make(Parts, target="labels").fit(given, X_val=given)
        np.testing.assert_allclose(clf.params_, expected.params_, rtol=1e-9)
        np.testing.assert_allclose(clf.predict_proba(given), expected.predict_proba(X))
        assert clf.score(given) == expected.score(X, targets)
        assert clf.predict(X).tolist() == expected.predict(X).tolist()
        scorer = SharpnessScorer(measure="trace")
        assert scorer(clf, given) == pytest.approx(scorer(expected, X, targets))
        before = clf.score(given), scorer(clf, given)
        clf.set_params(target=None)  # counts from the next fit on
        assert (clf.score(given), scorer(clf, given)) == before


def test_data_sets_feed_callbacks():
    callbacks = [("acc", EpochScoring("accuracy", name="acc", use_caching=False))]
    clf = make(Parts, target="labels", callbacks=callbacks).fit(Items(), X_val=Items())
    assert clf.net_.history[-1, "acc"] == clf.score(Items())


def test_a_warm_start_goes_on():
    X = {"a": A, "b": B, "mask": MASK}
    whole = make(Parts, max_iter=12).fit(X, Y)
    half = make(Parts, max_iter=6, warm_start=True).fit(X, Y).fit(X, Y)
    np.testing.assert_allclose(half.params_, whole.params_, rtol=1e-9)


def test_a_checkpoint_knows_leaves_and_names(tmp_path):
    X = {"a": A[:, :2], "b": B, "mask": MASK}

    class Short(Parts):
        def forward(self, a, b, mask):
            return super().forward(a, torch.cat([b, b[:, :1]], 1), mask)

    settings = {"checkpoint_dir": tmp_path / "run", "max_iter": 4}
    theta = make(Short, **settings).fit(X, Y).params_
    again = {"mask": MASK, "b": B, "a": A[:, :2]}  # in another order
    assert (make(Short, **settings).fit(again, Y).params_ == theta).all()
    for other in ({"a": B, "b": A[:, :2], "mask": MASK}, {**X, "mask": ~MASK}):
        with pytest.raises(ValueError, match="X and y"):
            make(Short, **settings).fit(other, Y)


def test_a_memory_knows_leaves_names_and_transform(tmp_path):
    X = {"a": A[:, :2], "b": B, "mask": MASK}

    class Short(Parts):
        runs = 0

        def forward(self, a, b, mask):
            out = super().forward(a, torch.cat([b, b[:, :1]], 1), mask)
            return {**out, "other": -out["logits"]}

    settings = {"memory": str(tmp_path), "warmup": {"max_iter": 5}, "max_iter": 0}
    transforms = (None, lambda out: out["other"])
    for given in (X, {"a": B, "b": A[:, :2], "mask": MASK}):
        for transform in transforms:
            options = {**settings, "output_transform": transform}
            found = make(Short, **options).fit(given, Y).params_
            options["memory"] = None
            assert (found == make(Short, **options).fit(given, Y).params_).all()


def test_analyzers():
    X = {"a": A, "b": B, "mask": MASK}
    clf, plain = make(Parts).fit(X, Y), one()
    for analyzer in (CurvatureAnalyzer, NoiseCovarianceAnalyzer):
        for found in (analyzer(clf), analyzer(clf).fit(X, Y)):
            assert found.trace() == pytest.approx(analyzer(plain).trace())
        coordinates = (
            analyzer(clf, n_components=2, random_state=0).fit(X, Y).transform(X, Y)
        )
        assert coordinates.shape == (N, 2)
    # of a bare module, with targets as the loss takes them
    module, targets = clf.module_, (Y == "up").astype(int)
    options = {"loss": "cross_entropy", "random_state": 0}
    for given, y, more in (
        (X, targets, {}),
        ({**X, "labels": targets}, None, {"target": "labels"}),
        (X, targets, {"output_transform": lambda out: out["logits"]}),
        (Items(), None, {"target": "labels"}),
    ):
        found = CurvatureAnalyzer(module, **options, **more).fit(given, y)
        assert found.trace() == pytest.approx(CurvatureAnalyzer(plain).trace())
        scorer = SharpnessScorer(measure="trace", loss="cross_entropy", **more)
        assert scorer(module, given, y) == pytest.approx(
            SharpnessScorer(measure="trace")(plain, ONE, Y)
        )
    analyzer = CurvatureAnalyzer(clf).fit(X, Y)
    with pytest.raises(ValueError, match="the parts of the X of fit"):
        analyzer.transform(ONE, Y)
    with pytest.raises(ValueError, match="the form of the X of fit"):
        analyzer.transform((A, B, MASK), Y)
    for name, value in (("target", "labels"), ("output_transform", len)):
        with pytest.raises(ValueError, match=f"with its own {name}"):
            CurvatureAnalyzer(clf, **{name: value}).fit(X, Y)


def test_output_transform_decides_everywhere():
    class Several(One):
        def forward(self, x):
            f = super().forward(x)
            return {"logits": f * 0, "right": f}

    def right(outputs):
        return outputs["right"]

    clf = make(Several, output_transform=right).fit(ONE, Y)
    plain = one()
    np.testing.assert_allclose(clf.params_, plain.params_)
    np.testing.assert_allclose(clf.predict_proba(ONE), plain.predict_proba(ONE))
    assert clf.score(ONE, Y) == plain.score(ONE, Y)
    assert clone(clf).output_transform is right
    assert (clf.net_.predict(ONE) == plain.predict(ONE)).all()
    np.testing.assert_allclose(clf.net_.predict_proba(ONE), plain.predict_proba(ONE))
    trace = SharpnessScorer(measure="trace")
    assert trace(clf.net_, ONE, Y) == pytest.approx(trace(plain, ONE, Y))


def test_loss_auto_looks_at_the_right_output():
    class Single(One):
        def forward(self, x):
            return {"logits": super().forward(x)[:, :1], "hidden": x}

    clf = make(Single).fit(ONE, Y)
    assert clf.net_.criterion_.extra_repr() == "binary_cross_entropy"
    assert clf.predict_proba(ONE).shape == (N, 2)


def test_a_regressor():
    class Numbers(Parts):
        def forward(self, a, b, mask):
            return super().forward(a, b, mask)["logits"][:, 0]

    reg = NoisyDiffusionRegressor(Numbers, max_iter=5, random_state=0)
    X = {"a": A, "b": B, "mask": MASK}
    reg.fit(X, A[:, 0])
    assert reg.predict(X).shape == (N,)
    held = {**X, "y": A[:, 0]}
    again = clone(reg).set_params(target="y").fit(held)
    assert (again.params_ == reg.params_).all()
    assert again.score(held) == reg.score(X, A[:, 0])


def test_names_of_an_earlier_fit_are_gone():
    frame = pd.DataFrame(ONE.astype(float), columns=list("abcdef"))

    class Both(Parts):
        def forward(self, a, b=None, mask=None):
            return One.forward(self, a) if b is None else super().forward(a, b, mask)

    clf = make(Both).fit(frame, Y)
    assert clf.n_features_in_ == 6
    clf.fit({"a": A, "b": B, "mask": MASK}, Y)
    assert not hasattr(clf, "n_features_in_")
    assert not hasattr(clf, "feature_names_in_")
    clf.fit(ONE, Y)
    assert clf.n_features_in_ == 6
    assert not hasattr(clf, "feature_names_in_")


BAD = {
    "another shape": (
        {"a": A[:, :2], "b": B, "mask": MASK},
        r"X\['a'\] must have the shape",
    ),
    "another name": (
        {"a": A, "c": B, "mask": MASK},
        r"X\['mask'\]. Got X\['a'\], X\['c'\]",
    ),
    "one array": (ONE, "X must have the parts of the training data"),
    "a tuple": ((A, B, MASK), r"Got X\[0\], X\[1\], X\[2\]"),
    "another length": (
        {"a": A[1:], "b": B, "mask": MASK},
        "all examples on its first axis",
    ),
    "other numbers": (
        {"a": A, "b": B, "mask": MASK.astype(int)},
        r"X\['mask'\] must hold truth values, as in the training data. Got int64",
    ),
    "NaN": ({"a": A * np.nan, "b": B, "mask": MASK}, r"X\['a'\] contains NaN"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_at_predict(name):
    clf = make(Parts, max_iter=1).fit({"a": A, "b": B, "mask": MASK}, Y)
    X, text = BAD[name]
    with pytest.raises(ValueError, match=text):
        clf.predict(X)


def test_integers_are_floating_numbers_where_the_training_data_were():
    clf = make(Parts, max_iter=1).fit({"a": A, "b": B, "mask": MASK}, Y)
    a = A.round()
    found, expected = (
        clf.predict_proba({"a": part, "b": B, "mask": MASK})
        for part in (a.astype(int), a)
    )
    assert (found == expected).all()


def test_what_is_refused_at_fit():
    X = {"a": A, "b": B, "mask": MASK}
    with pytest.raises(ValueError, match=r"takes one array.*pass module="):
        make(None).fit(X, Y)
    with pytest.raises(ValueError, match="must have as many examples"):
        make(Parts).fit(X, Y[1:])
    with pytest.raises(ValueError, match=r"target=NAME, which is one of \['a', 'b'"):
        make(Parts).fit(Items())
    with pytest.raises(ValueError, match="be one array, as the training data"):
        make(One).fit(ONE, Y).predict(X)
    with pytest.raises(TypeError, match="lengths from 1 to 2; pad"):
        make(One).fit([[1.0], [1.0, 2.0]], ["a", "b"])
    with pytest.raises(ValueError, match=r"arguments a, b, mask\. Got the names a, b"):
        make(Parts).fit({"a": A, "b": B}, Y)
