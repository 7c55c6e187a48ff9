"""Products of weights of which only the ratios matter."""

from __future__ import annotations

import numpy as np

__all__ = ["relative_weights"]


def relative_weights(*factors: np.ndarray) -> np.ndarray:
    """Return the products of weights over a power of two, so that none overflows.

    Parameters
    ----------
    *factors : ndarray of shape (n,)
        Finite, not negative.

    Returns
    -------
    ndarray of shape (n,)
        In float64, the largest between 2⁻ᵏ and 1 for k factors, or all 0. Mantissas and
        exponents are multiplied apart: nothing is lost but what is 1e-300 of the
        largest.

    Examples
    --------
    >>> weights = relative_weights(np.array([1e308, 5e307]), np.array([1e308, 1e308]))
    >>> float(weights[0] / weights[1])
    2.0
    """
    mantissas = np.ones(len(factors[0]))
    exponents = np.zeros(len(factors[0]), dtype=np.int64)
    for factor in factors:
        mantissa, exponent = np.frexp(np.asarray(factor, dtype=np.float64))
        mantissas *= mantissa
        exponents += exponent
    counts = mantissas > 0
    if not counts.any():
        return mantissas
    exponents -= exponents[counts].max()
    # One that counts nothing has no exponent of its own.
    return np.ldexp(mantissas, np.where(counts, exponents, 0).clip(-3000, 0))
