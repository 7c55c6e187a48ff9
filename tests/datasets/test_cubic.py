"""The data of appendix A."""

import numpy as np
import pytest

from flatmin.datasets import make_cubic_regression


def test_points_are_equidistant_with_both_ends():
    X, y = make_cubic_regression()
    assert X.shape == (20, 1)
    assert y.shape == (20,)
    assert X.dtype == y.dtype == np.float64
    assert X[0, 0] == -1
    assert X[-1, 0] == 1
    np.testing.assert_allclose(np.diff(X[:, 0]), 2 / 19, rtol=1e-13)


@pytest.mark.parametrize("n_samples", [2, 20, 100])
def test_values_are_those_of_the_expanded_cubic(n_samples):
    X, y = make_cubic_regression(n_samples)
    assert len(y) == n_samples
    np.testing.assert_allclose(y, X[:, 0] ** 3 - X[:, 0] / 4, atol=1e-15)


def test_one_point_is_refused():
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 2"):
        make_cubic_regression(1)


def test_the_number_of_points_must_be_an_integer():
    with pytest.raises(ValueError, match="n_samples must be an integer"):
        make_cubic_regression(20.0)
