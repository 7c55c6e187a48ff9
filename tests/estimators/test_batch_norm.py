"""Training with the statistics of the full batch, against a loop in train mode."""

import copy
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.autograd.functional import hessian
from torch.nn import functional as F

from flatmin import CurvatureAnalyzer, NoisyDiffusionClassifier, NoisyDiffusionRegressor
from flatmin.dynamics import Recorder
from flatmin.risk.quantities import first_order

from .. import oracles

RNG = np.random.default_rng(0)
X, y = RNG.normal(size=(24, 1, 4, 4)), np.arange(24) % 3
X_val, y_val = RNG.normal(size=(9, 1, 4, 4)), np.arange(9) % 3
WEIGHTS = np.linspace(0.5, 2.0, 24)


class Net(nn.Module):
    def __init__(self, n_outputs=3):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.fc, self.last = nn.Linear(8, 3), nn.BatchNorm1d(3, momentum=None)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(3, n_outputs)

    def forward(self, x):
        h = F.avg_pool2d(torch.tanh(self.norm(self.stem(x))), 2).flatten(1)
        return self.head(self.dropout(torch.tanh(self.last(self.fc(h)))))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double()


pytestmark = pytest.mark.filterwarnings("ignore:The module has active dropout")


def classifier(module, **settings):
    fixed = {"method": "gd", "lr": 0.5, "max_iter": 6, "record_every": 2}
    fixed |= {"batch_norm": "batch", "dtype": "float64", "random_state": 0}
    return NoisyDiffusionClassifier(module=module, **fixed | settings)


def training(module):
    module = copy.deepcopy(module).train()
    module.dropout.p = 0.0
    return module


def by_hand(module, n_iter=6, weights=None):
    """Train by PyTorch alone; return the module, and L before each step and after."""
    module = training(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    w = torch.ones(24) if weights is None else torch.from_numpy(weights)
    losses = []
    for i in range(n_iter + 1):
        optimizer.zero_grad()
        each = F.cross_entropy(module(tensor(X)), torch.from_numpy(y), reduction="none")
        loss = (w * each).sum() / w.sum()
        losses.append(loss.item())
        if i < n_iter:
            loss.backward()
            optimizer.step()
    return module, losses


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def with_statistics(module, X=X):
    """Return a copy in evaluation mode, with statistics set layer by layer by hand."""
    module = copy.deepcopy(module).eval()

    def set_own(layer, args):
        axes = [axis for axis in range(args[0].ndim) if axis != 1]
        layer.running_mean = args[0].detach().mean(axes)
        layer.running_var = args[0].detach().var(axes, correction=0)

    for layer in (module.norm, module.last):
        handle = layer.register_forward_pre_hook(set_own)
        module(tensor(X))
        handle.remove()
    return module


def outputs(module, X):
    with torch.no_grad():
        return module(tensor(X)).numpy()


def close(found, expected, rtol=1e-9):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_descent_is_that_of_a_loop_in_train_mode(net, weights):
    clf = classifier(net).fit(X, y, weights)
    trained, losses = by_hand(net, weights=weights)
    theta = nn.utils.parameters_to_vector(trained.parameters()).detach()
    close(clf.params_, theta)
    close(clf.history_["loss"], losses[::2])
    right = with_statistics(trained)
    for name in ("norm", "last"):
        found, expected = getattr(clf.module_, name), getattr(right, name)
        close(found.running_mean, expected.running_mean)
        close(found.running_var, expected.running_var)
        assert int(found.num_batches_tracked) == 1
        assert found.momentum == getattr(net, name).momentum
    # Evaluation mode on the training set gives L(θ) again.
    assert not any(part.training for part in clf.module_.modules())
    each = F.cross_entropy(
        clf.module_(tensor(X)), torch.from_numpy(y), reduction="none"
    ).detach()
    close(float(clf.risk_.value(clf.risk_.params())), losses[-1])
    close(np.average(each, weights=weights), losses[-1])
    close(clf.decision_function(X_val), outputs(right, X_val))
    assert clf.score(X_val, y_val) == np.mean(outputs(right, X_val).argmax(1) == y_val)
    # Of the module that was handed over, nothing has changed.
    assert float(net.norm.num_batches_tracked) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "gld_const", "method_params": {"sigma": 0.1}},
        {"method": "gld_ggn", "method_params": {"match": "none"}, "noise_scale": 0.1},
        {"method": "sam"},
        {
            "method": "gld_hessian",
            "method_params": {"match": "none"},
            "n_components": 2,
            "warmup": {"method": "gd", "max_iter": 2, "optimizer": "rmsprop"},
        },
        {"optimizer": "adam", "lr": 0.01},
    ],
    ids=lambda s: s.get("method", "adam"),
)
def test_other_methods(net, settings):
    clf = classifier(net, **settings).fit(X, y)
    trained = training(net)
    nn.utils.vector_to_parameters(tensor(clf.params_), trained.parameters())
    loss = F.cross_entropy(trained(tensor(X)), torch.from_numpy(y)).item()
    close(clf.history_["loss"].iloc[-1], loss)
    close(float(clf.risk_.value(clf.risk_.params())), loss)
    close(clf.decision_function(X_val), outputs(with_statistics(trained), X_val))


def test_validation_has_the_statistics_of_the_training_set(net):
    clf = classifier(net).fit(X, y, X_val=X_val, y_val=y_val)
    for i, row in enumerate(clf.history_.to_dict("records")):
        module = with_statistics(by_hand(net, 2 * i)[0])
        logits = tensor(outputs(module, X_val))
        close(row["valid_loss"], F.cross_entropy(logits, tensor(y_val)).item())
        assert row["valid_score"] == np.mean(logits.argmax(1).numpy() == y_val)


def test_a_fit_takes_the_statistics_once_a_point(net, monkeypatch):
    passes, true = [], first_order.recorded_statistics

    def counted(module):
        passes.append(module)
        return true(module)

    monkeypatch.setattr(first_order, "recorded_statistics", counted)
    clf = classifier(net).fit(X, y, X_val=X_val, y_val=y_val)
    assert len(passes) == len(clf.history_)


class Looks(Callback):
    """Predicts with the net wherever it is told of something."""

    def _look(self, net):
        self.seen_.append(net.module_(tensor(X_val)).detach().clone())

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.seen_ = []
        net.module_.eval()
        self._look(net)

    def on_epoch_end(self, net, **kwargs):
        self._look(net)


def test_callbacks_predict_with_the_statistics_at_their_point(net):
    looks = Looks()
    clf = classifier(net, callbacks=[looks]).fit(X, y)
    seen = dict(clf.net_.callbacks_)["Looks"].seen_
    assert len(seen) == 4
    for i, found in enumerate(seen):
        close(found, outputs(with_statistics(by_hand(net, 2 * i)[0]), X_val))


def test_a_callback_may_not_change_the_statistics(net):
    class Changes(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.module_.norm.running_mean.add_(1)

    with pytest.raises(RuntimeError, match=r"norm\.running_mean .*before fit"):
        classifier(net, callbacks=[Changes]).fit(X, y)


def test_the_best_point_of_early_stopping_has_its_statistics(net):
    stopping = {"early_stopping": True, "n_iter_no_change": 1, "tol": 0.0}
    clf = classifier(net, training=stopping, max_iter=20, record_every=1, lr=3.0)
    clf.fit(X, y, X_val=X_val, y_val=y_val)
    assert clf.best_iteration_ < clf.n_iter_
    trained = training(net)
    nn.utils.vector_to_parameters(tensor(clf.params_), trained.parameters())
    close(clf.decision_function(X_val), outputs(with_statistics(trained), X_val))
    best = clf.history_.set_index("iteration")["valid_score"][clf.best_iteration_]
    assert clf.score(X_val, y_val) == best


def test_predictions_at_other_points_have_the_statistics_there(net):
    clf = classifier(net, keep_params_every=3).fit(X, y)
    right = []
    for i in (0, 3, 6):
        module = with_statistics(by_hand(net, i)[0])
        right.append(tensor(outputs(module, X_val)).softmax(1).numpy())
    before = clf.predict_proba(X_val)
    close(clf.predict_proba(X_val, params=clf.trajectory_), np.mean(right, 0))
    close(before, right[-1])
    close(clf.predict_proba(X_val), before)  # the fit's own are as they were
    for other in (
        pickle.loads(pickle.dumps(clf)),
        classifier(net, keep_params_every=3, store_data=False).fit(X, y),
    ):
        close(other.predict_proba(X_val), before)
        with pytest.raises(ValueError, match="no longer holds its data"):
            other.predict_proba(X_val, params=other.params_)


def test_a_run_goes_on_where_it_was(net, tmp_path, monkeypatch):
    once = classifier(net).fit(X, y)
    first = classifier(net, max_iter=4, warm_start=True).fit(X, y)
    first.set_params(max_iter=2).fit(X, y)
    close(first.params_, once.params_)
    close(first.decision_function(X_val), once.decision_function(X_val))

    record = Recorder.record

    def stopped(recorder, iteration, *args, **kwargs):
        if iteration == 4:
            raise OSError("stopped")
        return record(recorder, iteration, *args, **kwargs)

    saved = {"checkpoint_dir": {"path": tmp_path, "every": 1}, "callbacks": [Looks]}
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "record", stopped)
        with pytest.raises(OSError, match="stopped"):
            classifier(net, **saved).fit(X, y)
    resumed = classifier(net, **saved).fit(X, y)
    assert len(dict(resumed.net_.callbacks_)["Looks"].seen_) == 4
    close(resumed.params_, once.params_, 1e-14)
    close(resumed.decision_function(X_val), once.decision_function(X_val), 1e-12)


def test_the_risk_of_a_fit_is_of_the_batch_and_one_of_other_data_is_not(net):
    clf = classifier(net).fit(X, y)
    risk, trained = clf.risk_, by_hand(net)[0]
    assert risk.batch_norm == "batch"
    call = oracles.function_of(trained)

    def loss(theta):
        logits = call(theta, tensor(X))
        return F.cross_entropy(logits, torch.from_numpy(y))

    H = hessian(loss, risk.params())
    values = torch.linalg.eigvalsh(H).flip(0)
    pairs = CurvatureAnalyzer(clf, tol=1e-9).eigen(3)
    close(pairs.eigenvalues, values[:3], 1e-7)
    frozen = clf.make_risk(X, y)
    assert frozen.batch_norm == "frozen"
    close(float(frozen.value(frozen.params())), float(risk.value(risk.params())))
    assert np.isfinite(frozen.squared_norms(frozen.params()).numpy()).all()


def test_a_regressor(net):
    targets = RNG.normal(size=24)
    settings = {"module_params": {"n_outputs": 1}, "method": "gd", "lr": 0.1}
    settings |= {"dtype": "float64", "batch_norm": "batch", "random_state": 0}
    reg = NoisyDiffusionRegressor(Net, max_iter=4, **settings).fit(X, targets)
    last = reg.history_["loss"].iloc[-1]
    close(np.mean((reg.predict(X) - targets) ** 2), last)


@pytest.mark.parametrize("method", ["sgd", "gld_full", "gld_dynamic", "gld_hessian"])
def test_methods_that_need_examples_are_refused_at_once(net, method):
    seen = []
    clf = classifier(net, method=method, metrics={"m": lambda r, t: seen.append(1)})
    with pytest.raises(ValueError, match=f"^The law {method}.*batch_norm='frozen'"):
        clf.fit(X, y)
    assert not seen


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(16, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(torch.tanh(self.norm(self.fc(x.flatten(1)))))


@pytest.mark.parametrize(
    ("module", "settings", "match"),
    [
        (None, {"gradient_batch_size": 5}, "^gradient_batch_size=5 needs the loss"),
        (Twice, {}, "a BatchNorm that a pass uses twice"),
        (
            nn.Sequential(
                nn.Flatten(),
                nn.Linear(16, 3),
                nn.BatchNorm1d(3, track_running_stats=False),
            ),
            {},
            "track_running_stats=False; set it to True",
        ),
        (None, {"batch_norm": "full"}, "The 'batch_norm' parameter .* Got 'full'"),
    ],
)
def test_bad_settings(net, module, settings, match):
    with pytest.raises(ValueError, match=match):
        classifier(net if module is None else module, **settings).fit(X, y)


def test_digits_that_evaluation_mode_loses_are_no_reason_to_refuse():
    flat = (X.reshape(24, 16) + 10_000).astype(np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3))
    clf = classifier(module, dtype="float32", lr=0.1).fit(flat, y)
    risk = clf.risk_
    outputs = risk.outputs(risk.params()).numpy()
    off = np.abs(clf.decision_function(flat) - outputs).max() / np.abs(outputs).max()
    assert 1e-5 < off < 1e-2
