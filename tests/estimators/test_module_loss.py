"""Estimators, analyzers and the scorer with a loss that calls the module."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.nn import functional as F

from flatmin import (
    CurvatureAnalyzer,
    NoiseCovarianceAnalyzer,
    NoisyDiffusionClassifier,
    NoisyDiffusionRegressor,
    SharpnessScorer,
)
from flatmin.risk import ModuleLoss

from ._problems import Auto, reconstruction

N = 12
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 2)), RNG.normal(size=N)


def weighted(module, X, y):
    """Squared error of one output, with a weight that the inputs give."""
    return (module(X).squeeze(1) - y).square() * X[:, 0].abs()


def fit(f, *data, module=Auto, **settings):
    defaults = {"method": "gd", "lr": 0.1, "max_iter": 400, "dtype": "float64"}
    estimator = NoisyDiffusionRegressor(
        module, loss=ModuleLoss(f), random_state=0, **{**defaults, **settings}
    )
    return estimator.fit(*data)


def reconstruction_loss(w, X):
    return ((X @ np.outer(w, w) - X) ** 2).sum(1)


@pytest.fixture(scope="module")
def autoencoder():
    return fit(reconstruction, X)


def test_an_autoencoder_finds_the_principal_axis(autoencoder):
    values, vectors = np.linalg.eigh(X.T @ X / N)
    axis = vectors[:, -1] * np.sign(vectors[:, -1] @ autoencoder.params_)
    np.testing.assert_allclose(autoencoder.params_, axis, atol=1e-6)
    assert autoencoder.history_["loss"].iloc[-1] == pytest.approx(values[0])
    assert autoencoder.history_["train_score"].iloc[-1] == pytest.approx(-values[0])
    assert autoencoder.score(X) == pytest.approx(-values[0])
    np.testing.assert_allclose(
        autoencoder.predict(X), X @ np.outer(axis, axis), atol=1e-6
    )
    right = -reconstruction_loss(axis, X[:5]).mean()
    assert autoencoder.score(X[:5]) == pytest.approx(right, abs=1e-6)


def test_another_loss_counts_from_the_next_fit_on():
    estimator = fit(reconstruction, X, max_iter=5)
    score = estimator.score(X)
    (value,) = (
        CurvatureAnalyzer(estimator, random_state=0).fit(X).eigen(k=1).eigenvalues
    )
    estimator.set_params(loss="huber")
    assert estimator.score(X) == score
    again = CurvatureAnalyzer(estimator, random_state=0).fit(X).eigen(k=1)
    assert again.eigenvalues.tolist() == [value]


def test_its_validation_needs_no_y_either():
    estimator = NoisyDiffusionRegressor(
        Auto, loss=ModuleLoss(reconstruction), max_iter=5, l2=0.5, random_state=0
    ).fit(X, X_val=X[:5])
    last, w = estimator.history_.iloc[-1], estimator.params_
    losses = reconstruction_loss(w, X[:5])
    assert last["valid_score"] == pytest.approx(-losses.mean(), rel=1e-5)
    assert last["valid_loss"] == pytest.approx(losses.mean() + w @ w / 4, rel=1e-5)
    assert estimator.score(X[:5]) == pytest.approx(-losses.mean(), rel=1e-5)


def test_analyzers(autoencoder):
    w = autoencoder.params_

    def loss(w):
        x = torch.as_tensor(X)
        return (x @ torch.outer(w, w) - x).square().sum(1)

    theta = torch.as_tensor(w)
    H = torch.autograd.functional.hessian(lambda w: loss(w).mean(), theta)
    rows = torch.autograd.functional.jacobian(loss, theta)
    for model, options in (
        (autoencoder, {}),
        (autoencoder.module_, {"loss": ModuleLoss(reconstruction)}),
    ):
        analyzer = CurvatureAnalyzer(model, **options).fit(X)
        np.testing.assert_allclose(analyzer.matvec(np.eye(2)), H, atol=1e-9)
        noise = NoiseCovarianceAnalyzer(model, n_components=1, **options).fit(X)
        right = float(rows.var(0, correction=0).sum())
        assert noise.trace().value == pytest.approx(right)
        assert noise.transform(X).shape == (N, 1)
        scorer = SharpnessScorer(measure="trace", sigma=0.1, **options)
        assert scorer(model, X) == pytest.approx(-0.005 * float(H.trace()))
        with pytest.raises(ValueError, match="does not say what the outputs are"):
            CurvatureAnalyzer(model, matrix="ggn", **options).fit(X).trace()
    assert CurvatureAnalyzer(autoencoder).trace().value == pytest.approx(
        float(H.trace())
    )
    copied = clone(autoencoder).fit(X)
    np.testing.assert_array_equal(copied.params_, autoencoder.params_)


def test_with_targets():
    reg = fit(weighted, X, Y, module=lambda: nn.Linear(2, 1, bias=False))
    roots = np.sqrt(np.abs(X[:, 0]))
    right = np.linalg.lstsq(roots[:, None] * X, roots * Y, rcond=None)[0]
    np.testing.assert_allclose(reg.params_, right, atol=1e-6)
    np.testing.assert_allclose(reg.predict(X), X @ right, atol=1e-5)
    losses = (X @ right - Y) ** 2 * np.abs(X[:, 0])
    assert reg.score(X, Y) == pytest.approx(-losses.mean())
    weights = np.arange(N)
    found = reg.score(X, Y, sample_weight=weights)
    assert found == pytest.approx(-np.average(losses, weights=weights), abs=1e-6)


@pytest.mark.parametrize("method", ["sgd", "gld_full", "gld_hessian"])
def test_other_laws_run(method):
    reg = fit(reconstruction, X, method=method, max_iter=5, lr=0.01, batch_size=3)
    assert np.isfinite(reg.params_).all()


def test_gld_ggn_is_refused_before_work():
    started = []

    def f(module, X, y):
        started.append(len(X))
        return reconstruction(module, X, y)

    with pytest.raises(ValueError, match="method='gld_hessian'"):
        fit(f, X, method="gld_ggn", warmup={"max_iter": 10_000})
    assert len(started) < 1000


def test_a_classifier():
    def f(module, X, y):
        return F.cross_entropy(module(X), y, reduction="none")

    labels = np.where(Y > 0, "up", "down")
    settings = {"max_iter": 20, "method": "gd", "random_state": 0}
    module = nn.Linear(2, 2)
    own, named = (
        NoisyDiffusionClassifier(module, loss=loss, **settings).fit(X, labels)
        for loss in (ModuleLoss(f), "cross_entropy")
    )
    np.testing.assert_allclose(own.params_, named.params_, rtol=1e-4)
    assert own.score(X, labels) == named.score(X, labels)
    assert own.history_["train_score"].isna().all()


def test_other_losses_need_y():
    with pytest.raises(ValueError, match="requires y to be passed"):
        NoisyDiffusionRegressor(Auto).fit(X)
    with pytest.raises(ValueError, match="requires y to be passed"):
        CurvatureAnalyzer(Auto(), loss="squared_error").fit(X)


def test_skorch_has_no_loss_of_a_batch(autoencoder):
    with pytest.raises(TypeError, match="skorch hands outputs and y"):
        autoencoder.net_.get_loss(torch.zeros(2, 2), torch.zeros(2))


def test_a_memory_knows_the_function(tmp_path):
    def half(module, X, y):
        return reconstruction(module, X, y) / 2

    settings = {"memory": str(tmp_path), "warmup": {"max_iter": 5}, "max_iter": 0}
    whole, again, other = (
        fit(f, X, **settings).params_ for f in (reconstruction, reconstruction, half)
    )
    np.testing.assert_array_equal(whole, again)
    assert not np.allclose(whole, other)
