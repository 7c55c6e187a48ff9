"""The standard error is that of the draws themselves, which the matrix writes down."""

import numpy as np
import pytest

from flatmin.linalg import frobenius_norm, trace

from ._matrices import SPECTRA, Bare


class Watched(Bare):
    """Keeps every vector that it is applied to."""

    def __init__(self, values):
        super().__init__(values)
        self.vectors = []

    def _matvec(self, v):
        self.vectors.append(v.double().numpy())
        return super()._matvec(v)


# Few draws, of which n and n - 1 differ most, and more than one stage of them.
@pytest.mark.parametrize("n", [6, 40])
@pytest.mark.parametrize("estimate", [trace, frobenius_norm])
def test_the_error_is_the_spread_of_the_draws(estimate, n):
    A = Watched(SPECTRA["indefinite"])
    result = estimate(A, method="hutchinson", rtol=0, max_matvecs=n, rng=0)
    z = np.stack(A.vectors)
    assert z.shape == (n, 300)
    products = z @ A.matrix.numpy()
    if estimate is trace:
        draws = (z * products).sum(1)
        value, stderr = draws.mean(), draws.std(ddof=1) / n**0.5
    else:
        draws = (products**2).sum(1)
        value = draws.mean() ** 0.5
        stderr = draws.std(ddof=1) / n**0.5 / (2 * value)
    assert float(result.value) == pytest.approx(value, rel=1e-12)
    assert float(result.stderr) == pytest.approx(stderr, rel=1e-12)
