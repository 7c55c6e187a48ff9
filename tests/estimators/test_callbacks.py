"""skorch's callbacks, counted in blocks of record_every iterations."""

import numpy as np
import pytest
import torch
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    Initializer,
    InputShapeSetter,
    LoadInitState,
    LRScheduler,
    ProgressBar,
)

from ._problems import blobs, classifier, flat, plane, regressor

X, y = blobs()
X_val, y_val = blobs(seed=1)


class Counter(Callback):
    """Counts what it is told."""

    def __init__(self):
        self.events = []

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.events.append("train begins")

    def on_epoch_end(self, net, **kwargs):
        self.events.append(net.history[-1, "iteration"])

    def on_train_end(self, net, X=None, y=None, **kwargs):
        self.events.append("train ends")


def test_a_block_is_an_epoch():
    counter = Counter()
    classifier(callbacks=[counter], max_iter=25, record_every=10).fit(X, y)
    assert counter.events == ["train begins", 10, 20, 25, "train ends"]


@pytest.mark.parametrize(
    "callback",
    [
        ProgressBar(),
        ProgressBar,
        ("bar", ProgressBar()),
        GradientNormClipping(1.0),
        BatchScoring("accuracy"),
        LRScheduler(policy="StepLR", step_size=1, step_every="batch"),
    ],
    ids=lambda callback: str(callback)[:30],
)
def test_callbacks_of_batches_are_refused(callback):
    clf = classifier(callbacks=[callback])
    with pytest.raises(ValueError, match=r"works on batches.*block of record_every"):
        clf.fit(X, y)


def test_also_when_a_parameter_makes_them_so():
    schedule = ("lr", LRScheduler(policy="StepLR", step_size=1))
    clf = classifier(callbacks=[schedule]).set_params(callbacks__lr__step_every="batch")
    with pytest.raises(ValueError, match="LRScheduler works on batches"):
        clf.fit(X, y)


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (Freezer("layers.0.*"), "requires_grad=False"),
        (InputShapeSetter(), "module_params"),
    ],
)
def test_callbacks_that_would_have_no_effect_are_refused(callback, match):
    with pytest.raises(ValueError, match=match):
        classifier(callbacks=[callback]).fit(X, y)


def test_a_callback_may_not_build_the_module_anew():
    class Anew(Callback):
        def on_epoch_begin(self, net, **kwargs):
            net.set_params(module__n_features=4, module__n_outputs=3)

    with pytest.raises(RuntimeError, match=r"initialised the net anew.*module_params"):
        classifier(callbacks=[Anew]).fit(X, y)


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match=r"must be skorch callbacks .* Got 'bar'"):
        classifier(callbacks=["bar"]).fit(X, y)


def test_an_unknown_callback_is_refused():
    clf = classifier(callbacks=[("lr", LRScheduler())])
    clf.set_params(callbacks__lrr__policy="StepLR")
    with pytest.raises(ValueError, match=r"Unknown callback 'lrr'; did you mean 'lr'"):
        clf.fit(X, y)


def test_early_stopping_stops_in_order():
    counter = Counter()
    stop = EarlyStopping(monitor="train_loss", patience=2, threshold=10.0)
    stop.set_params(threshold_mode="abs", sink=lambda text: None)
    clf = classifier(callbacks=[stop, counter], max_iter=1000).fit(X, y)
    # The first block is the best, and two are not.
    assert clf.n_iter_ == 30
    assert clf.history_["iteration"].tolist() == [0, 10, 20, 30]
    assert counter.events[-1] == "train ends"
    assert len(clf.net_.history) == 3


def test_early_stopping_on_validation_data_brings_back_the_best():
    noise = np.random.default_rng(0).integers(0, 3, size=len(y))
    stop = EarlyStopping(patience=3, load_best=True, sink=lambda text: None)
    clf = classifier(callbacks=[stop], max_iter=2000, lr=0.5, method="gd")
    clf.fit(X, noise, X_val=X_val, y_val=y_val)
    assert clf.n_iter_ < 2000
    losses = clf.history_["valid_loss"].iloc[1:]
    assert losses.iloc[-1] > losses.min()
    proba = clf.predict_proba(X_val)[np.arange(len(y_val)), y_val]
    assert -np.log(proba).mean() == pytest.approx(losses.min(), rel=1e-5)
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))


def test_a_checkpoint_brings_back_the_best(tmp_path):
    checkpoint = Checkpoint(monitor="valid_loss_best", load_best=True, dirname=tmp_path)
    checkpoint.set_params(sink=lambda text: None)
    noise = np.random.default_rng(0).integers(0, 3, size=len(y))
    clf = classifier(callbacks=[checkpoint], max_iter=300, lr=0.5, method="gd")
    clf.fit(X, noise, X_val=X_val, y_val=y_val)
    losses = clf.history_["valid_loss"].iloc[1:]
    assert losses.iloc[-1] > losses.min()
    proba = clf.predict_proba(X_val)[np.arange(len(y_val)), y_val]
    assert -np.log(proba).mean() == pytest.approx(losses.min(), rel=1e-5)
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))
    stored = torch.load(tmp_path / "params.pt", weights_only=True)
    for name, parameter in clf.module_.named_parameters():
        assert torch.equal(stored[name], parameter)


def test_a_run_begins_from_a_checkpoint(tmp_path):
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path, sink=lambda text: None)
    first = classifier(callbacks=[checkpoint], method="gd").fit(X, y)
    state = LoadInitState(checkpoint)
    second = classifier(callbacks=[state], method="gd", max_iter=1).fit(X, y)
    assert second.history_["loss"].iloc[-1] < first.history_["loss"].iloc[-1]


def test_an_initializer_moves_theta():
    zeros = Initializer("*", fn=torch.nn.init.zeros_)
    clf = classifier(callbacks=[zeros], max_iter=1, method="gd").fit(X, y)
    assert np.abs(clf.params_).max() < 0.1
    np.testing.assert_array_equal(clf.params_, flat(clf.module_))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_epoch_scoring_of_a_classifier(kind):
    data, other = X.astype(kind), X_val.astype(kind)
    callbacks = [
        ("valid", EpochScoring("accuracy", lower_is_better=False, name="valid")),
        ("log", EpochScoring("neg_log_loss", lower_is_better=False, name="log")),
        ("train", EpochScoring("accuracy", on_train=True, name="train")),
    ]
    clf = classifier(callbacks=callbacks)
    clf.fit(
        data,
        np.array(["a", "b", "c"])[y],
        X_val=other,
        y_val=np.array(["a", "b", "c"])[y_val],
    )
    history, rows = clf.net_.history, clf.history_.iloc[1:]
    assert history[:, "valid"] == pytest.approx(rows["valid_score"].tolist())
    assert history[:, "train"] == pytest.approx(rows["train_score"].tolist())
    log = [-value for value in history[:, "log"]]
    assert log == pytest.approx(rows["valid_loss"].tolist(), rel=1e-5)


def test_epoch_scoring_of_one_logit():
    X, y = blobs(n_classes=2)
    scoring = EpochScoring("roc_auc", lower_is_better=False)
    accuracy = EpochScoring("accuracy", lower_is_better=False)
    clf = classifier(loss="binary_cross_entropy", callbacks=[scoring, accuracy])
    clf.fit(X, y, X_val=X, y_val=y)
    assert clf.net_.history[-1, "roc_auc"] > 0.8
    assert clf.net_.history[:, "accuracy"] == clf.history_["valid_score"][1:].tolist()


@pytest.mark.parametrize("n_targets", [None, 2])
def test_epoch_scoring_of_a_regressor(n_targets):
    X, y = plane(n_targets=n_targets)
    scoring = EpochScoring("r2", lower_is_better=False)
    reg = regressor(callbacks=[scoring], lr=0.05).fit(X, y, X_val=X, y_val=y)
    scores = reg.history_["valid_score"].iloc[1:].tolist()
    assert reg.net_.history[:, "r2"] == pytest.approx(scores)


def test_the_users_callbacks_are_told_of_the_metrics():
    best = Checkpoint(monitor="norm_best", dirname="unused")
    assert best.monitor == "norm_best"

    class Watch(Callback):
        def __init__(self):
            self.seen = []

        def on_epoch_end(self, net, **kwargs):
            self.seen.append(net.history[-1, "norm"])

    watch = Watch()
    metrics = {"norm": lambda risk, theta: theta.norm()}
    clf = classifier(callbacks=[watch], metrics=metrics).fit(X, y)
    assert watch.seen == clf.history_["norm"][1:].tolist()
