"""Products of weights, beside exact fractions."""

from fractions import Fraction

import numpy as np
import pytest

from flatmin._utils.weights import relative_weights

EXTREMES = [
    ([1e308, 5e307], [1e308, 1e308]),
    ([5e-324, 1e-323], [1.0, 1.0]),
    ([1e-200, 1.0], [1.0, 1e-200]),  # the products underflow
    ([1e-300, 3e-300], [1e-300, 1e-300]),
    ([3.0, 0.0], [0.1, 1e300]),
]


@pytest.mark.parametrize(("a", "b"), EXTREMES)
def test_the_ratios_are_those_of_fractions(a, b):
    found = relative_weights(np.array(a), np.array(b))
    exact = [Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)]
    shares = [float(product / sum(exact)) for product in exact]
    np.testing.assert_allclose(found / found.sum(), shares, rtol=1e-15)
    assert 0.25 <= found.max() <= 1


def test_zeros_stay():
    np.testing.assert_array_equal(relative_weights(np.zeros(3)), np.zeros(3))
