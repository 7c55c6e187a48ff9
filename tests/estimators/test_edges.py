"""Data, weights and numbers at the edge: right, or refused before any work."""

import errno
import os

import numpy as np
import pytest
import torch
from torch import nn

from flatmin import (
    EmpiricalRisk,
    NoisyDiffusionClassifier,
    NoisyDiffusionRegressor,
    compare_dynamics,
)
from flatmin._runs import checkpoint_files
from flatmin.dynamics import NoisyDescent
from flatmin.noise import SAM, AntiPGD, GLDConst

rng = np.random.RandomState(0)
X = rng.randn(20, 3).astype(np.float32)
y = (X[:, 0] > 0).astype(np.int64)


def classifier(**params):
    linear = {
        "module": nn.Linear,
        "module_params": {"in_features": 3, "out_features": 2},
    }
    return NoisyDiffusionClassifier(
        **{**linear, "max_iter": 3, "random_state": 0, **params}
    )


@pytest.fixture
def no_iteration(monkeypatch):
    def run(*_, **__):
        pytest.fail("the training has begun")

    monkeypatch.setattr(NoisyDescent, "run", run)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"lr": 1e39}, "lr"),
        ({"warmup": {"lr": 1e39, "max_iter": 1}}, r"warmup\['lr'\]"),
        ({"noise_scale": 1e39}, "noise_scale"),
        ({"method": GLDConst(sigma=1e39)}, "sigma"),
        ({"method": AntiPGD(sigma=1e20)}, "sigma"),  # its square
        ({"method": GLDConst(sigma=1e-30)}, "sigma"),  # no noise at all
        ({"method": SAM(rho=1e39)}, "rho"),
        ({"lr": 1e-50}, "lr"),  # no step at all
    ],
)
def test_what_the_dtype_cannot_hold_is_refused(params, name, dtype, request):
    if dtype == "float32":
        request.getfixturevalue("no_iteration")
        with pytest.raises(ValueError, match=rf"{name}.*torch.float32"):
            classifier(dtype=dtype, **params).fit(X, y)
    else:  # these are numbers of float64
        classifier(dtype=dtype, on_divergence="stop", max_iter=0, **params).fit(X, y)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"optimizer_params": {1: 2}}, "optimizer_params"),
        ({"optimizer_params": {"momentum": np.nan}}, "optimizer_params"),
        ({"optimizer_params": {"momentum": "x"}}, "optimizer_params"),
        (
            {"optimizer": "adam", "optimizer_params": {"betas": (0.9, np.nan)}},
            "optimizer_params",
        ),
        ({"method_params": {1: 2}}, "method_params"),
        ({"module": nn.Linear, "module_params": {1: 2}}, "module_params"),
        ({"warmup": {1: 2}}, "warmup"),
        ({"metrics": {"\ud800": print}}, "metrics"),
        ({"checkpoint_dir": ""}, "checkpoint_dir"),
        ({"checkpoint_dir": "\ud800"}, "checkpoint_dir"),
        ({"checkpoint_dir": {"path": ""}}, r"checkpoint_dir\['path"),
        ({"memory": ""}, "memory"),
        ({"params_init": np.full(8, 1e39)}, "params_init"),
        ({"params_init": np.ma.array(np.ones(8), mask=[1] + [0] * 7)}, "params_init"),
        ({"params_init": torch.ones(8) + 1j}, "params_init"),
        ({"class_weight": {0: -1.0, 1: 2.0}}, "class_weight"),
    ],
)
@pytest.mark.usefixtures("no_iteration")
def test_parameters_are_named(params, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        classifier(**params).fit(X, y)
    assert not list(tmp_path.iterdir())


def test_a_comparison_writes_nothing_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("", "\ud800"):
        with pytest.raises(ValueError, match="checkpoint_dir must"):
            compare_dynamics(["gd"], X, y, estimator=classifier(), checkpoint_dir=path)
    with pytest.raises(ValueError, match="quench_lr"):
        compare_dynamics(["gd"], X, y, estimator=classifier(), quench=3, quench_lr=1e39)
    with pytest.raises(ValueError, match="Labels of methods must be text"):
        compare_dynamics({"\ud800": "gd"}, X, y, estimator=classifier())
    assert not list(tmp_path.iterdir())


def masked(array):
    mask = np.zeros(np.shape(array), bool)
    mask.flat[0] = True
    return np.ma.array(array, mask=mask)


@pytest.mark.parametrize(
    "spoil", [masked, lambda a: np.asarray(a) + 1j, lambda a: torch.as_tensor(a) + 1j]
)
def test_masked_and_complex_data_are_refused_everywhere(spoil):
    w = np.ones(20)
    clf = classifier().fit(X, y)
    reg = NoisyDiffusionRegressor(nn.Linear(3, 1), max_iter=2).fit(X, y * 1.0)
    bad = (TypeError, ValueError)
    for call in (clf.fit, clf.score, clf.make_risk, reg.fit, reg.score, reg.make_risk):
        with pytest.raises(bad, match=r"^X must"):
            call(spoil(X), y)
        with pytest.raises(bad, match=r"^y must"):
            call(X, spoil(y))
        with pytest.raises(bad, match=r"^sample_weight must"):
            call(X, y, sample_weight=spoil(w))
    for call in (clf.predict, clf.predict_proba, clf.decision_function, reg.predict):
        with pytest.raises(bad, match=r"^X must"):
            call(spoil(X))
    with pytest.raises(bad, match=r"^y must"):
        EmpiricalRisk(nn.Linear(3, 2), "cross_entropy", X, spoil(y))
    with pytest.raises(bad, match=r"^sample_weight must"):
        EmpiricalRisk(nn.Linear(3, 2), "cross_entropy", X, y, sample_weight=spoil(w))
    risk = clf.risk_
    with pytest.raises(bad, match=r"^indices must"):
        risk.batch_gradient(risk.params(), spoil(np.arange(4)))


@pytest.mark.parametrize("size", [1e308, 5e-324, 1e-310])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 1e308, 1: 1e308}])
def test_only_the_ratios_of_weights_matter(size, class_weight):
    ratios = np.where(np.arange(20) % 3, 1.0, 0.5) if size > 1 else np.ones(20)
    given = classifier(class_weight=class_weight).fit(X, y, size * ratios)
    if class_weight not in (None, "balanced"):
        class_weight = None  # alike
    plain = classifier(class_weight=class_weight).fit(X, y, ratios)
    np.testing.assert_allclose(given.params_, plain.params_, rtol=1e-6)
    assert np.abs(given.params_ - classifier(max_iter=0).fit(X, y).params_).max() > 1e-4


def test_bfloat16_is_widened():
    short = torch.as_tensor(X).bfloat16()
    found = classifier().fit(short, torch.as_tensor(y)).params_
    wanted = classifier().fit(short.float(), y).params_
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_unsigned_labels_are_labels(dtype):
    wanted = classifier().fit(X, y).params_
    for labels in (y.astype(dtype), torch.as_tensor(y).to(getattr(torch, dtype))):
        np.testing.assert_array_equal(classifier().fit(X, labels).params_, wanted)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16])
def test_small_integers_train_as_integers(kind):
    numbers = {"max_iter": 120, "record_every": 100, "warmup__max_iter": 100}
    numbers |= {"batch_size": 7, "refresh_every": 3, "noise_scale": 20}
    numbers |= {"gradient_batch_size": 12}
    found, wanted = (
        classifier(method="gld_dynamic")
        .set_params(**{name: to(value) for name, value in numbers.items()})
        .fit(X, y)
        for to in (kind, int)
    )
    np.testing.assert_array_equal(found.params_, wanted.params_)
    assert found.n_iter_ == 120


def test_float16_numbers_train_as_floats():
    found = classifier(method="gld_const", noise_scale=np.float16(300)).fit(X, y)
    wanted = classifier(method="gld_const", noise_scale=300.0).fit(X, y)
    np.testing.assert_array_equal(found.params_, wanted.params_)


def test_a_full_disk_at_the_first_checkpoint_says_where(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_files.os, "fsync", full)
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        classifier(checkpoint_dir=tmp_path).fit(X, y)
    assert caught.value.errno == errno.ENOSPC
