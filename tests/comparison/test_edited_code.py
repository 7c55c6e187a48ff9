"""After an edit of the code nothing old is returned for it."""

import numpy as np
import pytest
import torch
from torch import nn

from flatmin import NoisyDiffusionClassifier, compare_dynamics
from flatmin.linalg import DiagonalOperator
from flatmin.noise import GaussianLaw

from ._problems import digits

X, y, *_ = digits()
SCALE = 1.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(X.shape[1], 10)

    def forward(self, x):
        return self.layer(x).tanh()


def relu(self, x):
    return self.layer(x).relu()


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def three_times(outputs, targets):
    return 3 * nn.functional.cross_entropy(outputs, targets, reduction="none")


class Law(GaussianLaw):
    name = "own"

    def refresh(self, risk, theta, rng, previous=None):
        return DiagonalOperator(theta.square())


def absolute(self, risk, theta, rng, previous=None):
    return DiagonalOperator(theta.abs())


def metric(risk, theta):
    return SCALE * torch.linalg.vector_norm(theta)


EDITS = {
    "forward": lambda patch: patch.setattr(Net, "forward", relu),
    "loss": lambda patch: patch.setattr(loss, "__code__", three_times.__code__),
    "Law": lambda patch: patch.setattr(Law, "refresh", absolute),
    "SCALE": lambda patch: patch.setitem(globals(), "SCALE", 3.0),
}


def make(**settings):
    given = {"module": Net, "loss": loss, "method": Law(), "metrics": {"m": metric}}
    given |= {"lr": 0.01, "warmup": {"max_iter": 3}, "max_iter": 3, "random_state": 0}
    return NoisyDiffusionClassifier(**given | settings)


@pytest.mark.parametrize("name", EDITS)
def test_a_fit_is_refused(monkeypatch, tmp_path, name):
    make(checkpoint_dir=tmp_path).fit(X, y)
    EDITS[name](monkeypatch)
    with pytest.raises(ValueError, match=rf"differs from this one in .*{name}"):
        make(checkpoint_dir=tmp_path).fit(X, y)


@pytest.mark.parametrize("name", EDITS)
def test_a_comparison_is_refused(monkeypatch, tmp_path, name):
    settings = {"n_seeds": 1, "checkpoint_dir": tmp_path, "random_state": 0}
    compare_dynamics(Law(), X, y, estimator=make(), **settings)
    EDITS[name](monkeypatch)
    with pytest.raises(ValueError, match=rf"differs from this one in .*{name}"):
        compare_dynamics(Law(), X, y, estimator=make(), **settings)


@pytest.mark.parametrize("name", ["forward", "loss", "Law"])
def test_a_warmup_is_run_anew(monkeypatch, tmp_path, name):
    settings = {"warmup": {"max_iter": 3, "method": Law()}, "max_iter": 0}
    before = make(memory=str(tmp_path), **settings).fit(X, y).params_
    EDITS[name](monkeypatch)
    wanted = make(**settings).fit(X, y).params_
    found = make(memory=str(tmp_path), **settings).fit(X, y).params_
    np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(found, before)


def test_what_has_no_value_is_refused_before_the_run(tmp_path):
    held = (i for i in range(3))
    settings = {"checkpoint_dir": tmp_path, "metrics": {"m": lambda *_: next(held)}}
    with pytest.raises(TypeError, match=r"metrics: A builtins\.generator has no value"):
        make(**settings).fit(X, y)
    assert not any(path.is_file() for path in tmp_path.rglob("*.flatmin"))
