"""Langevin dynamics of an estimator samples what the formulas say."""

import numpy as np
import pytest
from skorch.callbacks import LRScheduler
from torch import nn

from flatmin import NoisyDiffusionRegressor
from flatmin.noise import GLDConst

from ._problems import blobs, classifier

X, y = blobs()


def linear():
    return nn.Linear(2, 1, bias=False).double()


def test_a_long_chain_has_the_moments_of_the_discrete_chain():
    """H is diagonal, so each parameter is an autoregression with known moments."""
    n, lr, temperature, every = 24, 0.5, 0.7, 5
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(n, 2)))[0]
    h = np.array([2.4, 0.8])  # of H = (2/N) XᵀX
    X, y = Q * np.sqrt(h * n / 2), rng.normal(size=n)
    reg = NoisyDiffusionRegressor(
        linear,
        method="gld_const",
        method_params={"temperature": temperature},
        lr=lr,
        max_iter=10_000,
        record_every=10_000,
        keep_params_every=every,
        dtype="float64",
        random_state=0,
    ).fit(X, y)
    points = reg.trajectory_.params[20:]  # after 100 iterations it has forgotten θ₀
    minimum = np.linalg.lstsq(X, y)[0]
    variance = temperature / (n * h * (1 - lr * h / 2))
    # Successive points have the correlation r = (1 - ηh)^k, their squares r².
    r = (1 - lr * h) ** every
    m = len(points)
    mean_error = np.sqrt(variance / m * (1 + r) / (1 - r))
    variance_error = variance * np.sqrt(2 / m * (1 + r**2) / (1 - r**2))
    centred = points - minimum
    assert (np.abs(centred.mean(0)) < 4 * mean_error).all()
    assert (np.abs((centred**2).mean(0) - variance) < 4 * variance_error).all()
    cross = (centred[:, 0] * centred[:, 1]).mean()
    assert abs(cross) < 4 * np.sqrt(variance.prod() / m * 2)
    posterior = temperature / (n * h)
    assert np.abs((centred**2).mean(0) - posterior).max() > 6 * variance_error.max()


def test_the_noise_follows_a_schedule_and_a_checkpoint(tmp_path):
    """√Tr C = √(2TD/(Nη)) in every row, and the same run in parts."""
    step = LRScheduler("StepLR", step_size=1, gamma=0.5)
    settings = {
        "method": GLDConst(temperature=0.1),
        "callbacks": [step],
        "dtype": "float64",
    }
    clf = classifier(**settings).fit(X, y)
    lr = 0.1 * 0.5 ** np.array([0, 0, 1, 2])  # the row is written before the callback
    wanted = np.sqrt(2 * 0.1 * len(clf.params_) / (len(X) * lr))
    np.testing.assert_allclose(clf.history_["noise_norm"], wanted, rtol=1e-10)
    kept = classifier(**settings, checkpoint_dir=tmp_path / "run").fit(X, y)
    np.testing.assert_array_equal(kept.params_, clf.params_)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"optimizer": "adam"}, "is in parameter units"),
        ({"optimizer_params": {"momentum": 0.9}}, "is in parameter units"),
        ({"gradient_batch_size": 30}, "gradient_batch_size adds the noise"),
        ({"method_params": {"temperature": 1.0, "sigma": 0.1}}, "leave one of them"),
        (
            {"warmup": {"max_iter": 2, "method": GLDConst(temperature=1.0, sigma=1.0)}},
            "leave one of them",
        ),
    ],
)
def test_what_would_be_another_temperature_is_refused(settings, match):
    params = {"method": "gld_const", "method_params": {"temperature": 1.0}} | settings
    with pytest.raises(ValueError, match=match):
        classifier(**params).fit(X, y)


def test_weight_decay_is_a_prior():
    """The chain of L + (λ/2) θ²: in the gradient λ θ is added by PyTorch."""
    n, lr, decay = 4, 0.3, 3.0
    h = 1.0
    X, y = np.full((n, 1), np.sqrt(h / 2)), np.zeros(n)
    reg = NoisyDiffusionRegressor(
        lambda: nn.Linear(1, 1, bias=False).double(),
        method="gld_const",
        method_params={"temperature": 1.0},
        optimizer_params={"weight_decay": decay},
        lr=lr,
        max_iter=3000,
        record_every=3000,
        keep_params_every=2,
        dtype="float64",
        random_state=0,
    ).fit(X, y)
    points = reg.trajectory_.params[10:, 0]
    curvature = h + decay
    variance = 1 / (n * curvature * (1 - lr * curvature / 2))
    r = (1 - lr * curvature) ** 2
    error = variance * np.sqrt(2 / len(points) * (1 + r**2) / (1 - r**2))
    assert abs((points**2).mean() - variance) < 4 * error
