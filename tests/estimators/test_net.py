"""The skorch net of an estimator: its loss, its labels, and what is loaded into it."""

import copy
import pickle

import joblib
import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import (
    Checkpoint,
    EpochScoring,
    LoadInitState,
    TrainEndCheckpoint,
)
from skorch.scoring import loss_scoring
from torch import nn

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer

from ._problems import blobs, classifier, flat, plane, regressor

X, y = blobs()
X32 = X.astype(np.float32)
LABELS = np.array(["ant", "bee", "cat"])
words = LABELS[y]
close = np.testing.assert_allclose
WEIGHT = torch.tensor([1.0, 2.0, 5.0])


def squares(outputs, targets):
    return (outputs.gather(1, targets[:, None])[:, 0] - 1) ** 2


LOSSES = {
    "auto": ("auto", lambda f, y: nn.functional.cross_entropy(f, y)),
    "name": ("cross_entropy", lambda f, y: nn.functional.cross_entropy(f, y)),
    "weights": (
        nn.CrossEntropyLoss(weight=WEIGHT),
        lambda f, y: nn.functional.cross_entropy(f, y, WEIGHT),
    ),
    "smoothing": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda f, y: nn.functional.cross_entropy(f, y, label_smoothing=0.1),
    ),
    "callable": (squares, lambda f, y: squares(f, y).mean()),
    "lambda": (lambda f, y: 3 * squares(f, y), lambda f, y: 3 * squares(f, y).mean()),
}


def outputs(clf):
    with torch.no_grad():
        return clf.module_(torch.as_tensor(X32))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_the_net_is_that_of_the_estimator(name):
    loss, mean = LOSSES[name]
    clf = classifier(loss=loss, lr=0.02, max_iter=10).fit(
        X, words, X_val=X, y_val=words
    )
    expected = float(mean(outputs(clf), torch.as_tensor(y)))
    assert float(clf.net_.get_loss(outputs(clf), words)) == pytest.approx(expected)
    assert clf.net_.history[-1, "valid_loss"] == pytest.approx(expected)
    one, two = (
        CurvatureAnalyzer(model, dtype="float64", random_state=0).fit(X, words)
        for model in (clf, clf.net_)
    )
    assert float(two.risk_.value(two.risk_.params())) == pytest.approx(expected)
    assert one.trace().value == two.trace().value
    close(one.eigen(2).eigenvalues, two.eigen(2).eigenvalues, rtol=1e-12)


@pytest.mark.parametrize("loss", ["squared_error", nn.HuberLoss(delta=0.3), nn.L1Loss])
def test_the_loss_of_a_regressors_net(loss):
    X, y = plane()
    reg = regressor(loss=loss, module=nn.Linear(4, 1)).fit(X, y)
    difference = reg.predict(X) - y
    size = np.abs(difference)
    expected = {
        "squared_error": size**2,
        nn.L1Loss: size,
    }.get(loss, np.where(size < 0.3, size**2 / 2, 0.3 * (size - 0.15)))
    # Targets (n,) and outputs (n, 1) would broadcast to (n, n).
    found = loss_scoring(reg.net_, X.astype(np.float32), y)
    assert found == pytest.approx(expected.mean(), rel=1e-5)


def test_skorchs_score_of_the_loss_reads_labels():
    clf = classifier().fit(X, 3 * y + 5)
    found = loss_scoring(clf.net_, X32, 3 * y + 5)
    expected = nn.functional.cross_entropy(outputs(clf), torch.as_tensor(y))
    assert found == pytest.approx(float(expected))


def test_class_weights_count_as_in_the_estimator():
    clf = classifier(class_weight={"ant": 1, "bee": 4, "cat": 0.5}).fit(X, words)
    for kind in (CurvatureAnalyzer, NoiseCovarianceAnalyzer):
        one, two = (
            kind(model, dtype="float64").fit(X, words) for model in (clf, clf.net_)
        )
        assert one.trace().value == two.trace().value
    with pytest.raises(ValueError, match="trained with"):
        CurvatureAnalyzer(clf.net_, loss="squared_error").fit(X, words)


def test_labels_that_look_like_indices_are_not():
    # 0 and 2 of three outputs: output 1 stands for label 2.
    some = y != 1
    clf = classifier(module=nn.Linear(4, 3)).fit(X[some], y[some])
    one, two = (
        CurvatureAnalyzer(model).fit(X[some], y[some]).trace().value
        for model in (clf, clf.net_)
    )
    assert one == two


def without(net):
    return net


@pytest.mark.parametrize(
    "how",
    [without, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["itself", "deepcopy", "pickle"],
)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_net_speaks_in_labels(how, n_classes):
    X, y = blobs(n_classes=n_classes)
    clf = classifier().fit(X, LABELS[y])
    net = how(clf.net_)
    inputs = X.astype(np.float32)
    np.testing.assert_array_equal(net.predict(inputs), clf.predict(X))
    np.testing.assert_array_equal(net.classes_, LABELS[:n_classes])
    close(net.predict_proba(inputs), clf.predict_proba(X), rtol=1e-5)
    assert net.score(inputs, LABELS[y]) == clf.score(X, LABELS[y])
    risk = net.make_risk(X, LABELS[y])
    assert torch.equal(risk.params(), clf.risk_.params())


def test_the_net_of_one_logit_speaks_in_labels():
    X, y = blobs(n_classes=2)
    clf = classifier(module=nn.Linear(4, 1)).fit(X, LABELS[y])
    inputs = X.astype(np.float32)
    np.testing.assert_array_equal(clf.net_.predict(inputs), clf.predict(X))
    with torch.no_grad():
        f = clf.module_(torch.as_tensor(inputs))[:, 0].numpy()
    expected = np.logaddexp(0, np.where(y == 1, -f, f)).mean()
    loss = clf.net_.get_loss(torch.as_tensor(f[:, None]), LABELS[y])
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize("n_targets", [None, 1, 2])
def test_a_regressors_net_predicts_in_the_shape_of_y(n_targets):
    X, y = plane(n_targets=n_targets)
    reg = regressor().fit(X, y)
    predicted = reg.net_.predict(X.astype(np.float32))
    assert predicted.shape == y.shape
    close(predicted, reg.predict(X), rtol=1e-6)


def test_scores_of_callbacks_are_of_labels():
    seen = []

    def score(net, X, y):
        seen.append(np.unique(y).tolist())
        return float((net.predict(X) == y).mean())

    scoring = EpochScoring(score, name="own", lower_is_better=False)
    f1 = EpochScoring("f1_macro", lower_is_better=False)
    clf = classifier(callbacks=[scoring, f1])
    clf.fit(X, words, X_val=X, y_val=words)
    assert seen == [LABELS.tolist()] * 3
    assert clf.net_.history[-1, "own"] == clf.score(X, words)


# --------------------------------------------------------------- what is loaded
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "sgd", "optimizer_params": {"momentum": 0.9}},
    "adam": {"optimizer": "adam", "lr": 0.01},
    "nadam": {"optimizer": torch.optim.NAdam, "lr": 0.01},
    "adafactor": {"optimizer": torch.optim.Adafactor, "lr": 0.01},
}


def saved(folder, **params):
    """Return a fitted classifier and the checkpoint of its last block."""
    checkpoint = Checkpoint(monitor=None, dirname=str(folder))
    return classifier(callbacks=[checkpoint], **params).fit(X, words), checkpoint


def assert_of_one_theta(clf, theta):
    np.testing.assert_array_equal(clf.params_, theta)
    np.testing.assert_array_equal(flat(clf.module_), theta)
    np.testing.assert_array_equal(clf.risk_.params().numpy(), theta)
    np.testing.assert_array_equal(clf.net_.predict(X32), clf.predict(X))
    with torch.no_grad():
        f = clf.module_(torch.as_tensor(X32))
    expected = float(nn.functional.cross_entropy(f, torch.as_tensor(y)))
    assert float(clf.risk_.value(clf.risk_.params())) == pytest.approx(expected)
    found = CurvatureAnalyzer(clf).trace().value
    again = CurvatureAnalyzer(clf).fit(X, words).trace().value
    assert found == pytest.approx(again, rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_whole_checkpoint_is_loaded(tmp_path, name):
    first, checkpoint = saved(tmp_path, **OPTIMIZERS[name])
    clf = classifier(random_state=1, **OPTIMIZERS[name]).fit(X, words)
    before = clf.risk_
    assert not np.array_equal(clf.params_, first.params_)
    clf.net_.load_params(checkpoint=checkpoint)
    assert_of_one_theta(clf, first.params_)
    assert len(clf.net_.history) == 3
    # What was analysed before stays where it was.
    assert not np.array_equal(before.params().numpy(), clf.params_)
    clf.set_params(warm_start=True, max_iter=1).fit(X, words)
    assert clf.history_["loss"].iloc[-2] == pytest.approx(
        first.history_["loss"].iloc[-1]
    )


def test_the_state_of_the_optimizer_is_that_of_plain_skorch(tmp_path):
    """A checkpoint goes to a net of skorch's own, with the moments in their places."""
    first, checkpoint = saved(tmp_path, **OPTIMIZERS["adam"])
    net = NeuralNetClassifier(
        copy.deepcopy(first.module_),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
    )
    net.initialize().load_params(checkpoint=checkpoint)
    assert [len(g["params"]) for g in net.optimizer_.param_groups] == [4]
    for parameter, state in net.optimizer_.state.items():
        assert state["exp_avg"].shape == parameter.shape
        assert float(state["step"]) == 30


@pytest.mark.parametrize("kind", [Checkpoint, TrainEndCheckpoint])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_from_a_checkpoint(tmp_path, name, kind):
    keep = {"monitor": None} if kind is Checkpoint else {}
    checkpoint = kind(dirname=str(tmp_path), **keep)
    params = {"method": "gd", **OPTIMIZERS[name]}
    first = classifier(callbacks=[checkpoint], **params).fit(X, words)
    second = classifier(callbacks=[LoadInitState(checkpoint)], random_state=1, **params)
    second.fit(X, words)
    assert second.history_["loss"].iloc[0] == first.history_["loss"].iloc[-1]
    # Gradient descent with the optimizer's memory: as in one piece.
    whole = classifier(max_iter=60, **params).fit(X, words)
    close(second.params_, whole.params_, rtol=1e-4, atol=1e-6)


def test_a_net_pickled_on_its_way_is_whole(tmp_path):
    checkpoint = Checkpoint(monitor=None, dirname=str(tmp_path), f_pickle="net.pkl")
    clf = classifier(callbacks=[checkpoint], **OPTIMIZERS["adam"]).fit(X, words)
    net = pickle.loads((tmp_path / "net.pkl").read_bytes())
    np.testing.assert_array_equal(flat(net.module_), clf.params_)
    np.testing.assert_array_equal(net.predict(X32), clf.predict(X))
    held = [p for group in net.optimizer_.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(held, net.module_.parameters(), strict=True))
    assert net.optimizer_.state[held[0]]["exp_avg"].shape == held[0].shape


@pytest.mark.parametrize(
    "load",
    [
        lambda module, state: module.load_state_dict(state),
        lambda module, state: module.load_state_dict(state, assign=True),
        lambda module, state: [
            p.data.copy_(state[name]) for name, p in module.named_parameters()
        ],
    ],
    ids=["copy", "assign", "data"],
)
def test_the_estimator_follows_its_module(load):
    clf, other = (classifier(random_state=s).fit(X, words) for s in (0, 1))
    load(clf.module_, copy.deepcopy(other.module_.state_dict()))
    assert_of_one_theta(clf, other.params_)
    held = joblib.hash(clf.params_)
    clf.params_[:] = 0  # a copy
    assert joblib.hash(clf.params_) == held


def test_buffers_and_precision_are_followed():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    clf = classifier(module=module, lr=0.01).fit(X, y)
    clf.module_[1].running_mean += 1
    clf.module_.double()
    assert clf.params_.dtype == np.float64
    risk = clf.risk_
    assert risk.dtype == torch.float64
    with torch.no_grad():
        f = clf.module_(torch.as_tensor(X))
    expected = float(nn.functional.cross_entropy(f, torch.as_tensor(y)))
    assert float(risk.value(risk.params())) == pytest.approx(expected, rel=1e-6)
    assert clf.risk_ is risk


class Tempered(nn.Module):
    """What it computes is in no tensor, and not in its ``repr``."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.settings = {"tau": [1.0]}
        self.activation = torch.tanh

    def forward(self, X):
        return self.activation(self.linear(X)) * self.settings["tau"][0]


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.settings["tau"].__setitem__(0, 5.0),
        lambda module: setattr(module, "activation", torch.sin),
    ],
)
def test_settings_of_the_module_are_followed(change):
    clf = classifier(module=Tempered()).fit(X, y)
    before = clf.risk_
    assert clf.risk_ is before
    change(clf.module_)
    with torch.no_grad():
        f = clf.module_(torch.as_tensor(X32))
    expected = float(nn.functional.cross_entropy(f, torch.as_tensor(y)))
    assert float(clf.risk_.value(before.params())) == pytest.approx(expected, rel=1e-5)


def test_the_risk_of_a_recurrent_network_is_made_once():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(1, 3, 2, dropout=0.5, batch_first=True)

        def forward(self, X):
            return self.lstm(X[..., None])[0][:, -1]

    with pytest.warns(UserWarning, match="dropout"):
        clf = classifier(module=Last()).fit(X, y)
    assert clf.risk_ is clf.risk_


def test_weights_stay_after_a_load():
    weights = np.linspace(0, 1, len(X))
    clf = classifier(class_weight={"ant": 1, "bee": 4, "cat": 0.5})
    clf.fit(X, words, weights)
    with torch.no_grad():
        for parameter in clf.module_.parameters():
            parameter.mul_(2)
    weights = weights * np.array([1, 4, 0.5])[y]
    f = outputs(clf)
    losses = nn.functional.cross_entropy(f, torch.as_tensor(y), reduction="none")
    expected = np.average(losses.numpy(), weights=weights)
    risk = clf.risk_
    assert float(risk.value(risk.params())) == pytest.approx(expected)


def test_a_frozen_module_keeps_theta():
    clf = classifier().fit(X, y)
    theta = clf.params_
    clf.module_.requires_grad_(False)
    np.testing.assert_array_equal(clf.params_, theta)


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_a_training_of_the_net_is_refused_before_it_does_harm(call, tmp_path):
    _, checkpoint = saved(tmp_path, random_state=1)
    clf = classifier(callbacks=[LoadInitState(checkpoint)], random_state=0)
    clf.fit(X, words)
    theta, n_blocks = clf.params_, len(clf.net_.history)
    clf.net_.callbacks_[-1][1].did_load_ = False
    with pytest.raises(RuntimeError, match="inside its flatmin estimator only"):
        getattr(clf.net_, call)(X32, y)
    np.testing.assert_array_equal(clf.params_, theta)
    assert len(clf.net_.history) == n_blocks


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fitted_net_keeps_the_state_of_its_optimizer(tmp_path, name):
    first, _ = saved(tmp_path, **OPTIMIZERS[name])
    stored = torch.load(tmp_path / "optimizer.pt", weights_only=True)["state"]
    held = first.net_.optimizer_.state_dict()["state"]
    assert held.keys() == stored.keys()
    for key, parts in stored.items():
        for part, value in parts.items():
            assert torch.equal(torch.as_tensor(held[key][part]), torch.as_tensor(value))


class Odd(torch.optim.SGD):
    """An optimizer with a state of its own kind."""

    def state_dict(self):
        return {"mine": 1}


def test_an_odd_state_loses_no_training():
    clf = classifier(optimizer=Odd).fit(X, words)
    assert clf.history_["loss"].iloc[-1] < clf.history_["loss"].iloc[0]
