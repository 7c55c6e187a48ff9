"""Heat map and curves hold what the tables say."""

import numpy as np
import pytest

from flatmin.plotting import AlignmentDisplay

from ._problems import HESSIAN, ON, X, Y, line, table


def test_heatmap_equals_the_dense_eigenvectors():
    display = AlignmentDisplay.from_estimator(line(), **ON, random_state=0)
    gradients = 2 * (X @ [0.3, -0.2] - Y)[:, None] * X
    U = np.linalg.eigh(HESSIAN)[1][:, ::-1]
    V = np.linalg.eigh(np.cov(gradients.T, ddof=0))[1][:, ::-1]
    np.testing.assert_allclose(display.image_.get_array(), abs(U.T @ V), atol=1e-6)
    assert display.image_.get_clim() == (0, 1)
    assert (display.k, display.n_params) == (2, 2)
    # Row 1 stands at the top, at rank 1.
    assert display.image_.get_extent() == [0.5, 2.5, 2.5, 0.5]
    assert "u_i^" in display.colorbar_.ax.get_ylabel()


def test_curves_over_iterations_with_the_baseline():
    tables = [table(2, residual) for residual in (1.5, 0.5)]
    display = AlignmentDisplay.from_results(tables, iterations=[0, 100]).plot()
    assert len(display.cosine_lines_) == 2
    np.testing.assert_array_equal(display.cosine_lines_[0].get_xdata(), [0, 100])
    np.testing.assert_allclose(display.cosine_lines_[1].get_ydata(), [0.2, 0.2])
    np.testing.assert_array_equal(display.residual_line_.get_ydata(), [1.5, 0.5])
    assert display.baseline_.get_ydata() == [2 * (1 - 2 / 10)] * 2
    display.plot(kind="heatmap")
    assert len(display.axes_) == 1


def test_seeds_become_mean_and_band():
    tables = [table(2, residual) for residual in (1.0, 0.4, 1.4, 0.8)]
    display = AlignmentDisplay.from_results(
        tables, iterations=[0, 10, 0, 10], seeds=[0, 0, 1, 1]
    ).plot(n_cosines=1)
    np.testing.assert_allclose(display.residual_line_.get_ydata(), [1.2, 0.6])
    (band,) = display.axes_[1].collections
    vertices = band.get_paths()[0].vertices
    at_start = vertices[vertices[:, 0] == 0][:, 1]
    assert (at_start.min(), at_start.max()) == (1.0, 1.4)
    assert len(display.cosine_lines_) == 1


def test_a_table_of_a_subset_is_not_drawn(of_a_subset):
    why = r"pairs: of a subset it has no sampling error"
    with pytest.raises(ValueError, match=why):
        AlignmentDisplay.from_results(of_a_subset)
    with pytest.raises(ValueError, match=why):
        AlignmentDisplay.from_results([of_a_subset], iterations=[0])
    with pytest.raises(ValueError, match=r"needs numbers\. Got NaN alone"):
        AlignmentDisplay(np.full((2, 2), np.nan)).plot()


def test_inner_products_that_are_chance_are_grey():
    known = table(2)
    known.inner_products[:, 1] = np.nan
    display = AlignmentDisplay.from_results(known).plot()
    colours = display.image_.to_rgba(display.image_.get_array())
    np.testing.assert_allclose(colours[:, 1], [[0.85, 0.85, 0.85, 1]] * 2)
    assert display.colorbar_.ax.get_ylabel().endswith(", grey: not defined")
    whole = AlignmentDisplay.from_results(table(2)).plot()
    assert "grey" not in whole.colorbar_.ax.get_ylabel()


def test_curves_without_a_number_are_not_drawn():
    tables = [table(2, np.nan), table(2, np.nan)]
    with pytest.raises(ValueError, match="The column 'residual' of this Alignment"):
        AlignmentDisplay.from_results(tables, iterations=[0, 10])
    display = AlignmentDisplay.from_results([table(2)], iterations=[0])
    display.history["cosine_2"] = np.nan
    with pytest.raises(ValueError, match="'cosine_2' must have a number"):
        display.plot()


def test_bad_input():
    with pytest.raises(TypeError, match="must be Alignments"):
        AlignmentDisplay.from_results([np.eye(2)])
    with pytest.raises(ValueError, match=r"same k and D\. Got \(k, D\) in no tables"):
        AlignmentDisplay.from_results([])
    with pytest.raises(ValueError, match=r"Got \(k, D\) in \[\(2, 10\), \(3, 10\)\]"):
        AlignmentDisplay.from_results([table(2), table(3)], iterations=[0, 1])
    with pytest.raises(ValueError, match="2 tables and iterations=None"):
        AlignmentDisplay.from_results([table(), table()])
    with pytest.raises(ValueError, match="2 tables, 1 iterations"):
        AlignmentDisplay.from_results([table(), table()], iterations=[0])
    with pytest.raises(ValueError, match="needs inner_products"):
        AlignmentDisplay().plot()
    with pytest.raises(ValueError, match="need a history"):
        AlignmentDisplay(np.eye(2)).plot(kind="curves")
    display = AlignmentDisplay.from_results([table()], iterations=[0])
    with pytest.raises(ValueError, match="did you mean 'curves'"):
        display.plot(kind="curve")
    display.history = display.history.drop(columns="residual")
    with pytest.raises(ValueError, match="must have the columns iteration, residual"):
        display.plot()
    with pytest.raises(ValueError, match="needs k and n_params"):
        AlignmentDisplay().baseline()
