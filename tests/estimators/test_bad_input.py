"""What is required, what was got, what to do: before any training."""

import re

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from skorch.callbacks import EarlyStopping
from torch import nn

from flatmin.noise import GLDConst, NoiseLaw

from ._problems import blobs, classifier, plane, regressor

X, y = blobs()
GAP = np.where(X > 3, np.nan, X)
BOTH = pytest.mark.parametrize("make", [classifier, regressor])


def raises(error, *words):
    """Expect an error whose message has these words, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words)))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        # names
        ({"method": "gld_hesian"}, ValueError, ["'gld_hesian'", "did you mean 'gld_h"]),
        (
            {"method": "gld_hesian"},
            ValueError,
            ["There are: 'alpha_st", "'sgd'"],
        ),
        ({"method": 3}, ValueError, ["'method'", "NoiseLaw", "Got 3"]),
        (
            {"warmup": {"max_iter": 1, "method": "sdg"}},
            ValueError,
            ["'sdg'", "did you mean 'sgd'"],
        ),
        (
            {"method": "gld_const", "method_params": {"sgma": 1}},
            ValueError,
            ["setting of gld_const 'sgma'", "did you mean 'sigma'"],
        ),
        (
            {"method": GLDConst(), "method_params": {"sigma": 1}},
            ValueError,
            ["is an instance", "{'sigma': 1}", "set_params(method__...)"],
        ),
        ({"loss": "crossentropy"}, ValueError, ["'crossentropy'", "'cross_entropy'?"]),
        ({"loss": 3}, TypeError, ["loss must be a name", "Got 3"]),
        ({"optimizer": "adm"}, ValueError, ["'adm'", "did you mean 'adam'"]),
        ({"optimizer": nn.Linear}, TypeError, ["a class from torch.optim", "Linear"]),
        (
            {"warmup": {"max_iter": 1, "optimizer": "adm"}},
            ValueError,
            ["'adm'", "'adam'"],
        ),
        (
            {"warmup": {"max_iter": 1, "opt": 1}},
            ValueError,
            ["Unknown setting", "'opt'"],
        ),
        ({"warmup": {"lr": 0.1}}, ValueError, ["how many iterations", "{'lr': 0.1}"]),
        ({"warmup": {"max_iter": -1}}, ValueError, ["warmup['max_iter']", "Got -1"]),
        ({"warmup": {"max_iter": 1, "method": 1}}, TypeError, ["warmup['method']"]),
        (
            {"optimizer_params": {"momentm": 0.9}},
            ValueError,
            ["parameter of the optimizer SGD 'momentm'", "did you mean 'momentum'"],
        ),
        ({"optimizer": torch.optim.LBFGS}, ValueError, ["LBFGS", "optimizer='sgd'"]),
        (
            {"warmup": {"max_iter": 1, "optimizer": torch.optim.LBFGS}},
            ValueError,
            ["LBFGS", "'adam'"],
        ),
        (
            {"module_params": {"hidden_layer_size": 3}},
            ValueError,
            ["parameter of the module MLP", "did you mean 'hidden_layer_sizes'"],
        ),
        # modules
        ({"module": "mlp"}, ValueError, ["'module'", "callable", "Got 'mlp'"]),
        ({"module": lambda: "mlp"}, TypeError, ["torch.nn.Module", "Got 'mlp'"]),
        (
            {"module": nn.Linear(4, 3), "module_params": {"bias": False}},
            ValueError,
            ["is an instance", "{'bias': False}", "pass the class"],
        ),
        ({"module": nn.Linear(5, 3)}, ValueError, ["cannot take X", "(60, 4)"]),
        ({"module": nn.Flatten()}, ValueError, ["no parameter", "Unfreeze at least"]),
        ({"module": nn.Linear(4, 2)}, ValueError, ["2 outputs", "labels from 0 to 2"]),
        ({"module": nn.Linear(4, 1)}, ValueError, ["two logits", "Got ('n', 1)"]),
        (
            {"module": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))},
            ValueError,
            ["BatchNorm", "batch_norm='frozen'", "GroupNorm"],
        ),
        # numbers
        ({"lr": 0}, ValueError, ["'lr'", "(0.0, inf)", "Got 0"]),
        ({"lr": -0.1}, ValueError, ["'lr'", "Got -0.1"]),
        ({"lr": np.nan}, ValueError, ["'lr'", "Got nan"]),
        (
            {"warmup": {"max_iter": 1, "lr": 0.0}},
            ValueError,
            ["warmup['lr']", "Got 0.0"],
        ),
        ({"noise_scale": -1.0}, ValueError, ["'noise_scale'", "[0.0, inf)", "Got -1"]),
        (
            {"method": GLDConst(noise_scale=-1.0)},
            ValueError,
            ["noise_scale of gld_const", "at least 0", "Got -1"],
        ),
        ({"max_iter": -1}, ValueError, ["'max_iter'", "Got -1"]),
        ({"max_iter": 2.5}, ValueError, ["'max_iter'", "an int", "Got 2.5"]),
        ({"record_every": 0}, ValueError, ["'record_every'", "Got 0"]),
        ({"batch_size": 0}, ValueError, ["'batch_size'", "Got 0"]),
        ({"on_divergence": "ignore"}, ValueError, ["'on_divergence'", "Got 'ignore'"]),
        ({"dtype": "float16"}, ValueError, ["'float32' or 'float64'", "'float16'"]),
        (
            {"method": "gld_hessian", "n_components": 1000},
            ValueError,
            ["n_components of gld_hessian", "number of parameters, 67", "Got 1000"],
        ),
        (
            {"method": "gld_leading", "batch_size": 20, "n_components": 3},
            ValueError,
            ["n_components of gld_leading", "minibatches, 3", "Got 3", "smaller batch"],
        ),
        (
            {
                "method": "gld_leading",
                "n_components": 60,
                "method_params": {"source": "examples"},
            },
            ValueError,
            ["n_components of gld_leading", "examples, 60", "Got 60"],
        ),
        *(
            (
                {"batch_size": 61, "method_params": {"sampling": sampling}},
                ValueError,
                ["batch_size", "examples, 60", "Got 61", "sampling='replacement'"],
            )
            for sampling in ("without_replacement", "epoch")
        ),
        # points
        ({"params_init": np.zeros(3)}, ValueError, ["67 trainable", "Got shape (3,)"]),
        ({"params_init": np.full(67, np.inf)}, ValueError, ["params_init", "infinity"]),
        ({"params_init": np.full(67, np.nan)}, ValueError, ["params_init", "NaN"]),
        # functions
        (
            {"loss": lambda f, y: nn.functional.cross_entropy(f, y)},
            ValueError,
            [
                "one number for each of the n examples",
                "Got shape ()",
                "reduction='none",
            ],
        ),
        ({"metrics": {"a": 3}}, TypeError, ["metrics['a']", "(risk, theta)", "Got 3"]),
        (
            {"metrics": {"loss": lambda risk, theta: 0}},
            ValueError,
            ["names that history_ does not use", "'loss'"],
        ),
        (
            {"metrics": {"a": lambda risk, theta: "x"}},
            TypeError,
            ["metrics['a'] must return a number", "Got 'x'"],
        ),
        # places
        ({"device": "nonsense"}, ValueError, ["this machine", "'cpu'", "'nonsense'"]),
        ({"device": 3.5}, ValueError, ["this machine", "'cpu'", "Got '3.5'"]),
        ({"memory": 3}, ValueError, ["'memory'", "Got 3"]),
        ({"class_weight": "balancd"}, ValueError, ["'balanced'", "Got 'balancd'"]),
        ({"class_weight": {0: 1.0, 9: 2.0}}, ValueError, ["not in class_weight"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings(settings, error, words):
    clf = classifier(**settings)
    with raises(error, *words):
        clf.fit(X, y)
    assert not hasattr(clf, "params_")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there():
    with raises(ValueError, "must be one that PyTorch can use", "'auto'", "'cuda'"):
        classifier(device="cuda").fit(X, y)
    classifier(device="auto").fit(X, y)


@BOTH
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((X[:0], y[:0]), ["0 sample(s)", "minimum of 2"]),
        ((X[:1], y[:1]), ["1 sample(s)", "minimum of 2"]),
        ((GAP, y), ["X contains NaN"]),
        ((np.where(X > 3, np.inf, X), y), ["X contains infinity"]),
        ((X, np.where(y == 1, np.nan, y)), ["y contains NaN"]),
        ((X, np.where(y == 1, np.inf, y)), ["y contains", "infinity"]),
        ((X, y, np.where(y == 1, np.nan, 1)), ["sample_weight contains NaN"]),
        ((X, y, np.where(y == 1, -1, 1)), ["sample_weight", "not be negative", "-1"]),
        ((X, y, np.zeros(60)), ["sample_weight", "positive sum"]),
        ((X, y, np.ones(3)), ["sample_weight must have shape (60,)", "Got (3,)"]),
        ((X, y[:5]), ["as many examples", "Got 60 and 5"]),
        ((X, None), ["requires y to be passed"]),
    ],
    ids=[
        *("no example", "one example", "NaN in X", "infinity in X", "NaN in y"),
        *("infinity in y", "NaN weight", "negative weight", "zero weights"),
        *("short weights", "short y", "no y"),
    ],
)
def test_data(make, given, words):
    with raises(ValueError, *words):
        make().fit(*given)


@BOTH
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"X_val": X}, ["come together", "y_val=None"]),
        ({"y_val": y}, ["come together", "X_val=None"]),
        ({"X_val": X[:4], "y_val": y}, ["X_val and y_val", "Got 4 and 60"]),
        ({"X_val": X[:, :2], "y_val": y}, ["X has 2 features", "expecting 4"]),
        ({"X_val": GAP, "y_val": y}, ["contains NaN"]),
    ],
    ids=["no y_val", "no X_val", "lengths", "features", "NaN"],
)
def test_validation_data(make, given, words):
    with raises(ValueError, *words):
        make().fit(X, y, **given)


def test_a_scale_that_the_law_does_not_have():
    class Own(NoiseLaw):
        name = "own"

        def noisy_gradient(self, risk, theta, state, rng):
            return risk.value_and_gradient(theta)

        def covariance(self, risk, theta, state):
            raise NotImplementedError

    with raises(ValueError, "Own has no such setting", "Got noise_scale=2.0"):
        classifier(method=Own(), noise_scale=2.0).fit(X, y)


def test_a_callback_that_waits_for_validation_data():
    clf = classifier(callbacks=[("stop", EarlyStopping())])
    with raises(ValueError, "stop monitors 'valid_loss'", "Pass X_val and y_val"):
        clf.fit(X, y)
    clf.fit(X, y, X_val=X, y_val=y)


def test_validation_labels():
    with raises(ValueError, "labels that the training data did not", "[3]", "[0 1 2]"):
        classifier().fit(X, y, X_val=X, y_val=y + 1)


def test_one_class():
    with raises(ValueError, "at least two classes", "one class: 'a'"):
        classifier().fit(X, ["a"] * 60)
    # Before anything about ranks and batches.
    with raises(ValueError, "at least two classes"):
        classifier(method="gld_leading", batch_size=1000).fit(X, np.zeros(60))


def test_numbers_are_no_labels():
    with raises(ValueError, "Unknown label type"):
        classifier().fit(*plane())


def test_a_regressors_module_must_fit_the_targets():
    X, y = plane(n_targets=2)
    with raises(ValueError, "squared_error", "('n', 3)", "('n', 2)"):
        regressor(module=nn.Linear(4, 3)).fit(X, y)


@pytest.mark.parametrize("method", ["gd", "sgd"])
def test_what_cannot_be_gone_through_again(method):
    with raises(TypeError, "X must be an array", "again and again", "collect its exam"):
        classifier(method=method).fit((row for row in X), y)


def test_prediction_before_fit():
    with raises(NotFittedError, "not fitted yet"):
        classifier().predict(X)


@BOTH
def test_prediction_of_other_rows(make):
    model = make().fit(X, y)
    with raises(ValueError, "X has 3 features", "expecting 4"):
        model.predict(X[:, :3])
    with raises(ValueError, "Expected 2D array"):
        model.predict(X[0])
    with raises(ValueError, "contains NaN"):
        model.predict(GAP)


def test_prediction_of_other_images():
    model = classifier().fit(X.reshape(60, 1, 2, 2), y)
    with raises(ValueError, "shape of the training data, ('n', 1, 2, 2)", "1, 4, 1)"):
        model.predict(X.reshape(60, 1, 4, 1))
    with raises(ValueError, "X has 4 features", "expecting 1"):
        model.predict(X)


def test_targets_of_another_shape_in_a_warm_start():
    X, y = plane(n_targets=2)
    reg = regressor(warm_start=True).fit(X, y)
    with raises(ValueError, "shape of the training targets, ('n', 2)", "('n',)"):
        reg.fit(X, y[:, 0])
