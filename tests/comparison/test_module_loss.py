"""A comparison with a loss that compares with no targets."""

import numpy as np
import pytest

from flatmin import NoisyDiffusionRegressor, compare_dynamics
from flatmin.comparison import ComparisonResult
from flatmin.risk import ModuleLoss

from ..estimators._problems import Auto, reconstruction

RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(12, 2)), RNG.normal(size=(5, 2))
S = X.T @ X / len(X)
LR, N_ITER = 0.05, 8


def loss(w, S=S):
    return np.trace(S) - 2 * w @ S @ w + (w @ S @ w) * (w @ w)


def step(w):
    return w - LR * (-4 * S @ w + 2 * (w @ w) * S @ w + 2 * (w @ S @ w) * w)


def autoencoder():
    return NoisyDiffusionRegressor(
        Auto,
        loss=ModuleLoss(reconstruction),
        lr=LR,
        max_iter=N_ITER,
        dtype="float64",
        warmup={"max_iter": 2},
    )


@pytest.fixture(scope="module")
def found():
    options = {"estimator": autoencoder(), "n_seeds": [0], "keep_params": True}
    return compare_dynamics(["gd", "sgd"], X, X_test=X_TEST, **options)


def test_it_needs_no_y(found):
    assert (found.units["status"] == "done").all(), found.failures
    w = found.params("gd", 0, "start")
    for _ in range(N_ITER):
        w = step(w)
    np.testing.assert_allclose(found.params("gd", 0, "noise"), w, rtol=1e-10)
    end = found.ends().loc[("noise", "gd", 0)]
    assert end["loss"] == pytest.approx(loss(w))
    assert end["test_loss"] == pytest.approx(loss(w, X_TEST.T @ X_TEST / len(X_TEST)))


def test_its_ends_are_measured_without_y(found, tmp_path):
    found.to_json(tmp_path / "found.json")
    stored = ComparisonResult.from_json(tmp_path / "found.json")
    measures = {"again": lambda risk, theta: risk.value(theta)}
    right = found.ends()["loss"].loc["noise"].to_numpy()
    for result, data in ((found, {}), (stored, {"X": X, "estimator": autoencoder()})):
        measured = result.measure(measures, phases="noise", **data)
        np.testing.assert_allclose(measured["again"], right, rtol=1e-12)
    with pytest.raises(ValueError, match=r"comes with X\. Got X=None"):
        found.measure(measures, y=X[:, 0])


def test_a_loss_that_compares_needs_y():
    compared = autoencoder().set_params(loss="squared_error")
    with pytest.raises(ValueError, match=r"y must be given.*Got y=None"):
        compare_dynamics("gd", X, estimator=compared)
    with pytest.raises(ValueError, match="X_test and y_test come together"):
        compare_dynamics("gd", X, X, X_test=X_TEST, estimator=compared)
    with pytest.raises(ValueError, match=r"Got X_test=None"):
        compare_dynamics("gd", X, y_test=X_TEST, estimator=autoencoder())
