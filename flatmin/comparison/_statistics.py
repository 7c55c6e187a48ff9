"""Paired differences: intervals, sign-flip tests, and many of them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from flatmin._utils.arrays import to_array, to_numpy
from flatmin._utils.numbers import is_number

__all__ = ["PairedDifference", "holm", "paired_difference"]

# All 2^n sign patterns are tried up to n = 14 pairs, a sample of this size beyond.
_N_SIGN_PATTERNS = 2**14


@dataclass(frozen=True)
class PairedDifference:
    """A mean of paired differences, with what is known about it.

    Examples
    --------
    >>> from flatmin.comparison import paired_difference
    >>> found = paired_difference([3.0, 4.0, 5.0], [1.0, 2.0, 2.0])
    >>> found.mean, found.n
    (2.3333333333333335, 3)
    """

    mean: float
    low: float  # ends of the t interval; NaN from a single pair
    high: float
    p_value: float  # two-sided, by sign flips; NaN from a single pair
    n: int  # pairs


def paired_difference(
    values: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95
) -> PairedDifference:
    """Return the mean of ``values - baseline``, its t interval and sign-flip p value.

    The interval is d̄ ± t s/√n with n - 1 degrees of freedom. The p value is the share
    of the 2ⁿ patterns of signs whose mean difference is at least as extreme, twice the
    smaller tail: exact if each difference is symmetric about 0, and never below 2/2ⁿ.
    Patterns are as extreme where they agree to the rounding of the values.
    With more than 14 pairs it is estimated from 16,384 patterns.

    Parameters
    ----------
    values : array-like of shape (n,)
    baseline : array-like of shape (n,)
        Of the same seeds in the same order. Pairs that are not finite are left out.
    confidence : float, default=0.95
        Of the interval.

    Returns
    -------
    PairedDifference

    Raises
    ------
    ValueError
        If the shapes differ or the confidence is not between 0 and 1.

    Examples
    --------
    All three differences have one sign, which happens in 2 of 8 patterns:

    >>> found = paired_difference([2.0, 3.0, 7.0], [1.0, 1.0, 4.0])
    >>> found.mean, round(found.low, 3), round(found.high, 3), found.p_value
    (2.0, -0.484, 4.484, 0.25)
    """
    if not (is_number(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence must lie between 0 and 1. Got {confidence!r}.")
    first = to_array("values", values, finite=False)
    second = to_array("baseline", baseline, finite=False)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            "values and baseline must be vectors of one length, a pair for each seed. "
            f"Got the shapes {first.shape} and {second.shape}."
        )
    whole = np.isfinite(first) & np.isfinite(second)
    first, second = first[whole], second[whole]
    n = len(first)
    mean = float(np.mean(first - second)) if n else math.nan
    if n < 2:
        return PairedDifference(mean, math.nan, math.nan, math.nan, n)
    error = float(np.std(first - second, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    eps = max(
        _unit_of_rounding("values", values), _unit_of_rounding("baseline", baseline)
    )
    p_value = _sign_flip_p_value(first, second, eps)
    return PairedDifference(mean, mean - half, mean + half, p_value, n)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p values for being many, by Holm's step-down method.

    The i-th smallest of m is multiplied by m - i + 1, and no adjusted value is smaller
    than that of a smaller p value, nor above 1. The chance of any false rejection is
    kept, whatever the tests have to do with each other.

    Parameters
    ----------
    p_values : array-like of shape (m,)
        NaN stands for no test, and does not count.

    Returns
    -------
    ndarray of shape (m,)

    References
    ----------
    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6 (1979) 65-70.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = to_array("p_values", p_values, (None,), finite=False)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def _sign_flip_p_value(first: NDArray[Any], second: NDArray[Any], eps: float) -> float:
    """Return twice the smaller tail of the sum of differences over signs."""
    # scipy.stats.permutation_test takes sums for equal if they differ by the rounding
    # of the sum. But each difference carries the rounding of its two values, which may
    # be far larger.
    moved = first != second
    size = max(
        np.abs(first[moved]).max(initial=0), np.abs(second[moved]).max(initial=0)
    )
    if size == 0:
        return 1.0
    first, second = first[moved] / size, second[moved] / size
    differences, n = first - second, len(moved)
    # Half a unit for each value, in either sum; and what is lost here.
    rounding = (eps + 4 * np.finfo(float).eps) * (np.abs(first) + np.abs(second)).sum()
    if 2**n <= _N_SIGN_PATTERNS:
        n_observed = 0  # the observed signs are among the patterns
        blocks = [1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)[:, moved]]
    else:
        n_observed, rng = 1, np.random.default_rng(0)
        shape = _N_SIGN_PATTERNS // 16, len(differences)
        blocks = (rng.choice((-1.0, 1.0), shape) for _ in range(16))
    sums = np.concatenate([signs @ differences for signs in blocks])
    observed = differences.sum()
    tails = (sums >= observed - rounding).sum(), (sums <= observed + rounding).sum()
    return float(min(1, 2 * (min(tails) + n_observed) / (len(sums) + n_observed)))


def _unit_of_rounding(name: str, data: ArrayLike) -> float:
    dtype = getattr(to_numpy(name, data), "dtype", None)
    is_short = isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize < 8
    return float(np.finfo(dtype if is_short else float).eps)
