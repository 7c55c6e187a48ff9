"""Rises against closed forms, and common random numbers."""

import numpy as np
import pytest
import torch

from flatmin.measures import expected_sharpness
from flatmin.plotting import SharpnessDisplay
from flatmin.risk import EmpiricalRisk

from ._problems import HESSIAN, ON, X, Y, displays, line, risk

SIZES = [0.1, 0.2, 0.4]


def test_rises_of_a_quadratic():
    display = SharpnessDisplay.from_estimator(line(), **ON, sizes=SIZES, n_draws=3)
    rng = torch.Generator().manual_seed(0)
    w = np.array([0.3, -0.2])
    for row in display.rises[""]:
        xi = torch.randn(2, generator=rng, dtype=torch.float64).numpy()
        expected = [risk(w + s * xi) - risk(w) for s in SIZES]
        np.testing.assert_allclose(row, expected, rtol=1e-9)
    assert display.traces[""] == pytest.approx(np.trace(HESSIAN))
    dashed = display.second_order_lines_[""].get_ydata()
    np.testing.assert_allclose(dashed, np.square(SIZES) / 2 * np.trace(HESSIAN))


def test_the_mean_is_the_expected_sharpness():
    display = SharpnessDisplay.from_estimator(line(), **ON, sizes=SIZES, n_draws=5)
    own = EmpiricalRisk(line(), "squared_error", X, Y)
    for size, mean in zip(SIZES, display.mean(""), strict=True):
        result = expected_sharpness(own, own.params(), sigma=size, n_draws=5)
        assert mean == pytest.approx(float(result))


@pytest.mark.parametrize("random_state", [3, None, np.random.RandomState(0)])
def test_models_share_the_perturbations(random_state):
    models = {"a": line(), "b": line(), "c": line((1.0, 0.0))}
    display = SharpnessDisplay.from_estimator(
        models, **ON, sizes=SIZES, n_draws=2, random_state=random_state
    )
    np.testing.assert_array_equal(display.rises["a"], display.rises["b"])
    assert not np.allclose(display.rises["a"], display.rises["c"])
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert [text for text in texts if "Tr" not in text] == ["a", "b", "c"]
    assert sum("Tr" in text for text in texts) == 1


def test_band_and_scales():
    display = displays()["sharpness"].plot()
    vertices = display.bands_["a"].get_paths()[0].vertices
    at = vertices[vertices[:, 0] == 0.2][:, 1]
    # The middle 80 % of 4 and 8, between which quantiles are linear.
    np.testing.assert_allclose([at.min(), at.max()], [4.4, 7.6])
    assert display.ax_.get_xscale() == display.ax_.get_yscale() == "log"
    falling = SharpnessDisplay([0.1, 0.2], {"a": [[-1.0, 2.0]]}).plot()
    assert falling.ax_.get_yscale() == "symlog"
    assert falling.plot(log=False).ax_.get_yscale() == "linear"
    assert falling.bands_ == falling.second_order_lines_ == {}


def test_sizes_come_sorted():
    display = SharpnessDisplay.from_estimator(
        line(), **ON, sizes=[0.4, 0.1], n_draws=1, second_order=False
    )
    np.testing.assert_array_equal(display.sizes, [0.1, 0.4])
    assert display.traces is None


@pytest.mark.parametrize("loss", [np.nan, np.inf])
@pytest.mark.parametrize("log", [True, False])
def test_a_loss_that_is_not_finite_is_not_drawn(loss, log):
    display = SharpnessDisplay(SIZES[:2], {"net": [[1.0, 2.0], [1.0, loss]]})
    with pytest.raises(ValueError, match=r"rises\['net'\] must be finite.* up to 0.2;"):
        display.plot(log=log)


def test_bad_input():
    with pytest.raises(ValueError, match="a list of positive numbers"):
        SharpnessDisplay.from_estimator(line(), **ON, sizes=[0.0, 1.0])
    with pytest.raises(ValueError, match="n_draws must be an integer of at least 1"):
        SharpnessDisplay.from_estimator(line(), **ON, n_draws=0)
    with pytest.raises(ValueError, match="at least one model"):
        SharpnessDisplay.from_estimator({}, **ON)
    with pytest.raises(ValueError, match=r"shape \(n_draws, 2\).*Got \(1, 3\)"):
        SharpnessDisplay([0.1, 0.2], {"a": [[1.0, 2.0, 3.0]]}).plot()
