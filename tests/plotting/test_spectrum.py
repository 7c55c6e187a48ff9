"""Eigenvalues, bulk and outliers against numbers that are known."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer
from flatmin.plotting import SpectrumDisplay

from ._problems import HESSIAN, ON, X, Y, displays, line, table


def test_from_estimator_equals_the_dense_matrices():
    display = SpectrumDisplay.from_estimator(line(), **ON, random_state=0)
    w = np.array([0.3, -0.2])
    gradients = 2 * (X @ w - Y)[:, None] * X
    covariance = np.cov(gradients.T, ddof=0)
    for values, matrix, norm in [
        (display.hessian_eigenvalues, HESSIAN, display.hessian_norm),
        (display.covariance_eigenvalues, covariance, display.covariance_norm),
    ]:
        np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1])
        assert norm == pytest.approx(np.linalg.norm(matrix))
    assert display.n_params == 2
    # Two equal shares, smoothed: the mean of two normal densities.
    z = (display.grid[:, None] - np.linalg.eigvalsh(HESSIAN)) / display.width
    normal = np.exp(-(z**2) / 2) / (display.width * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(display.density, normal.mean(1), atol=1e-12)
    assert np.trapezoid(display.density, display.grid) == pytest.approx(1, abs=1e-3)


def test_drawn_eigenvalues_are_normalised_or_plain():
    display = displays()["spectrum"].plot()
    heights = [stem.markerline.get_ydata() for stem in display.stems_]
    np.testing.assert_allclose(heights[0], [0.75, 0.5, 0.25])
    np.testing.assert_allclose(heights[1], [0.6, 0.4, 0.2])
    assert display.ax_.get_yscale() == "linear"
    display.plot(normalised=False)
    np.testing.assert_allclose(
        display.stems_[1].markerline.get_ydata(), [0.3, 0.2, 0.1]
    )
    assert display.ax_.get_yscale() == "log"


def test_negative_eigenvalues_are_drawn_on_a_linear_scale():
    display = SpectrumDisplay([2.0, -1.0]).plot()
    assert display.ax_.get_yscale() == "linear"
    np.testing.assert_array_equal(display.stems_[0].markerline.get_ydata(), [2, -1])


def test_outliers_lie_outside_the_bulk():
    display = displays()["spectrum"]  # 97 eigenvalues are 0, the others 1, 2, 3
    low, high = display.bulk()
    # The bulk ends where 97 exp(-z²/2) = 1, and the grid has steps of 0.05.
    edge = 0.2 * np.sqrt(2 * np.log(97))
    assert high == pytest.approx(edge, abs=0.05)
    assert low == pytest.approx(-edge, abs=0.05)
    np.testing.assert_array_equal(display.outliers(), [3, 2, 1])
    display.plot(kind="density")
    np.testing.assert_array_equal(display.outlier_marks_.get_xdata(), [3, 2, 1])
    display.hessian_eigenvalues = [0.1, 0.0]
    assert len(display.outliers()) == 0
    assert display.plot(kind="density").ax_.get_legend() is None


@pytest.mark.parametrize(
    ("known", "n_params", "told"),
    [
        ([3.0, 2.0], 100, "at least 2 outliers"),  # and 1 is one, too
        ([3.0, 2.0, 1.0], 100, "at least 3 outliers"),  # the next may be
        ([3.0, 2.0, 1.0, 0.0], 100, "3 outliers"),
        ([3.0, 2.0, 1.0], 3, "3 outliers"),  # there are no more
    ],
)
def test_outliers_are_counted_as_far_as_they_are_known(known, n_params, told):
    display = displays()["spectrum"]
    display.hessian_eigenvalues, display.n_params = known, n_params
    display.density = np.where(np.abs(display.grid) < 0.5, 10.0, 0.0)
    display.plot(kind="density")
    (text,) = display.ax_.get_legend().get_texts()
    assert text.get_text() == told


def test_eigenvalues_of_a_subset_are_not_drawn(of_a_subset):
    analyzer = CurvatureAnalyzer(line(), loss="squared_error").fit(X, Y)
    for density in (None, analyzer.density()):
        with pytest.raises(ValueError, match=r"pairs: of a subset it has no sampling"):
            SpectrumDisplay.from_results(of_a_subset, density)


@pytest.mark.parametrize("kind", ["eigenvalues", "density"])
def test_numbers_that_are_not_known_are_not_drawn(kind):
    display = displays()["spectrum"]
    display.hessian_eigenvalues = [3.0, np.nan, 1.0]
    with pytest.raises(ValueError, match="hessian_eigenvalues must be finite"):
        display.plot(kind=kind)
    display = displays()["spectrum"]
    display.covariance_norm = 0.0
    with pytest.raises(ValueError, match=r"norms, above 0\. Got 0\.0; pass"):
        display.plot(kind="eigenvalues")
    display.density = np.full_like(display.density, np.nan)
    with pytest.raises(ValueError, match="density must be finite"):
        display.plot(kind="density")


def test_the_density_has_a_log_scale_and_its_numbers():
    display = displays()["spectrum"].plot()
    ax = display.axes_[1]
    assert ax.get_yscale() == "log"
    drawn = display.density_line_.get_ydata()
    visible = drawn > ax.get_ylim()[0]
    np.testing.assert_array_equal(drawn[visible], display.density[visible])
    assert visible.sum() > 50


def test_results_give_the_same():
    net = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    analyzer = CurvatureAnalyzer(net, loss="squared_error").fit(X, Y)
    spectrum = analyzer.density()
    display = SpectrumDisplay.from_results(table(), spectrum, width=0.5)
    frame = spectrum.to_frame(display.grid, width=0.5)
    np.testing.assert_allclose(display.density, frame["density"])
    assert display.width == 0.5
    np.testing.assert_array_equal(display.hessian_eigenvalues, [3, 1])
    alone = SpectrumDisplay.from_results(table()).plot()
    assert len(alone.axes_) == 1


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_a_density_alone(matrix):
    analyzer = CurvatureAnalyzer(line(), loss="squared_error", matrix=matrix)
    spectrum = analyzer.fit(X, Y).density()
    display = spectrum.plot(width=0.5)
    assert isinstance(display, SpectrumDisplay)
    # The mean of two normal densities, around the eigenvalues of (2/N) XᵀX.
    z = (display.grid[:, None] - np.linalg.eigvalsh(HESSIAN)) / 0.5
    normal = np.exp(-(z**2) / 2) / (0.5 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(display.density, normal.mean(1), atol=1e-12)
    assert display.n_params == spectrum.n_params == 2
    (ax,) = display.axes_
    assert ax.get_xlabel().endswith("of $H$" if matrix == "hessian" else "of $G$")
    assert len(display.outlier_marks_.get_xdata()) == 0
    with pytest.raises(ValueError, match=r"a density alone\. Got no eigenvalues"):
        display.plot(kind="eigenvalues")
    ax = plt.figure().add_subplot()
    assert spectrum.plot(ax).ax_ is ax


def test_a_density_of_an_estimator_marks_outliers_without_the_noise(monkeypatch):
    monkeypatch.delattr(NoiseCovarianceAnalyzer, "alignment")
    display = SpectrumDisplay.from_estimator(line(), **ON, kind="density", k=2)
    values = np.linalg.eigvalsh(HESSIAN)[::-1]
    np.testing.assert_allclose(display.hessian_eigenvalues, values)
    assert len(display.axes_) == 1


def test_a_density_of_another_matrix_does_not_stand_beside_h():
    analyzer = CurvatureAnalyzer(line(), loss="squared_error", matrix="ggn")
    with pytest.raises(ValueError, match=r"be that of H\. Got that of the ggn"):
        SpectrumDisplay.from_results(table(), analyzer.fit(X, Y).density())
    with pytest.raises(ValueError, match="Got neither"):
        SpectrumDisplay.from_results()


def test_bad_input():
    with pytest.raises(TypeError, match="must be an Alignment"):
        SpectrumDisplay.from_results([1.0])
    with pytest.raises(TypeError, match="must be a SpectralDensity"):
        SpectrumDisplay.from_results(table(), [1.0])
    with pytest.raises(ValueError, match="need the Frobenius norms"):
        SpectrumDisplay([1.0]).plot(normalised=True)
    with pytest.raises(ValueError, match="read off the density"):
        SpectrumDisplay([1.0]).plot(kind="density")
    with pytest.raises(ValueError, match="Unknown kind 'stem'"):
        SpectrumDisplay([1.0]).plot(kind="stem")
    with pytest.raises(ValueError, match="has no loss of its own"):
        SpectrumDisplay.from_estimator(line(), X, Y)
    with pytest.raises(NotFittedError, match="pass X and y to draw it on"):
        SpectrumDisplay.from_estimator(line(), loss="squared_error")
