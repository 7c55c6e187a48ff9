"""Displays of a module that needs to be told how its risk is made."""

import numpy as np
import pytest
from torch import nn

from flatmin.plotting import (
    AlignmentDisplay,
    LandscapeDisplay,
    SharpnessDisplay,
    SpectrumDisplay,
)

from ._problems import HESSIAN, X, Y, line, risk

L2 = 0.5
W = np.array([0.3, -0.2])
CURVATURE = HESSIAN + L2 * np.eye(2)


class Named(nn.Module):
    """Takes a name, and returns two tensors of which the second counts."""

    def __init__(self):
        super().__init__()
        self.line = line(W.tolist())

    def forward(self, inputs):
        outputs = self.line(inputs)
        return {"first": 2 * outputs, "second": outputs}


def second(outputs):
    return outputs["second"]


DATA = {"inputs": X, "labels": Y}
OPTIONS = {
    "loss": "squared_error",
    "output_transform": second,
    "target": "labels",
    "positions": "example",
    "l2": L2,
    "hvp": "finite_difference",
}


def penalised(w):
    return risk(w) + L2 / 2 * np.square(w).sum(-1)


def test_eigenvalues():
    options = {**OPTIONS, "k": 2, "kind": "eigenvalues", "random_state": 0}
    display = SpectrumDisplay.from_estimator(Named(), DATA, **options)
    right = np.linalg.eigvalsh(CURVATURE)[::-1]
    np.testing.assert_allclose(display.hessian_eigenvalues, right, rtol=1e-6)
    rows = 2 * (X @ W - Y)[:, None] * X  # without the penalty
    sigma = np.cov(rows.T, ddof=0)
    right = np.linalg.eigvalsh(sigma)[::-1]
    np.testing.assert_allclose(display.covariance_eigenvalues, right, rtol=1e-6)


def test_density():
    options = {**OPTIONS, "k": 1, "kind": "density", "random_state": 0}
    display = SpectrumDisplay.from_estimator(Named(), DATA, **options)
    largest = np.linalg.eigvalsh(CURVATURE)[-1]
    np.testing.assert_allclose(display.hessian_eigenvalues, [largest], rtol=1e-6)


def test_inner_products():
    options = {**OPTIONS, "k": 2, "random_state": 0}
    display = AlignmentDisplay.from_estimator(Named(), DATA, **options)
    rows = 2 * (X @ W - Y)[:, None] * X
    u, v = (np.linalg.eigh(m)[1][:, ::-1] for m in (CURVATURE, np.cov(rows.T, ddof=0)))
    np.testing.assert_allclose(display.inner_products, np.abs(u.T @ v), atol=1e-6)


def test_sections():
    options = {**OPTIONS, "n_points": 3, "span": 1.0, "directions": np.eye(2)}
    display = LandscapeDisplay.from_estimator(Named(), DATA, **options)
    step = np.array([-1.0, 0.0, 1.0])
    points = W + np.stack(np.meshgrid(step, step), -1)
    np.testing.assert_allclose(display.values, penalised(points), rtol=1e-12)
    three = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    options = {**OPTIONS, "n_points": 2, "margin": 0.0}
    display = LandscapeDisplay.from_solutions(Named(), three, DATA, **options)
    corners = np.array([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 1.0]]])
    np.testing.assert_allclose(display.values, penalised(corners), rtol=1e-12)


def test_perturbations():
    sizes = [0.01, 0.1]
    display = SharpnessDisplay.from_estimator(
        {"net": Named()}, DATA, sizes=sizes, n_draws=2, **OPTIONS
    )
    assert display.traces["net"] == pytest.approx(np.trace(CURVATURE), rel=1e-6)
    # L is quadratic: what is even in s is s²/2 ξᵀHξ.
    small, large = display.rises["net"].T
    slope = (100 * small - large) / (100 * 0.01 - 0.1)
    curved = (large - 0.1 * slope) / 0.1**2
    again = (small - 0.01 * slope) / 0.01**2
    np.testing.assert_allclose(curved, again, rtol=1e-6)


def test_the_statistics_of_the_batch():
    """X has mean 0 and variance 1 after BatchNorm, whatever it ran through before."""
    net = nn.Sequential(nn.BatchNorm1d(2, eps=1e-12, affine=False), line(W.tolist()))
    display = LandscapeDisplay.from_estimator(
        *(net, X, Y),
        loss="squared_error",
        batch_norm="batch",
        directions=np.eye(2),
        span=1.0,
        n_points=3,
    )
    normed = (X - X.mean(0)) / X.std(0)
    right = np.square(normed @ W - Y).mean()
    np.testing.assert_allclose(display.values[1, 1], right, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (SpectrumDisplay.from_estimator, ()),
        (AlignmentDisplay.from_estimator, ()),
        (LandscapeDisplay.from_estimator, ()),
        (LandscapeDisplay.from_solutions, (np.eye(3, 2),)),
        (SharpnessDisplay.from_estimator, ()),
    ],
)
def test_an_argument_that_is_none(make, first):
    options = {**OPTIONS, "output_transfrom": second}
    match = "Unknown argument 'output_transfrom'; did you mean 'output_transform'"
    with pytest.raises(ValueError, match=match):
        make(Named(), *first, DATA, **options)
