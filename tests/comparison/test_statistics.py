"""Paired statistics against SciPy and against all patterns of signs."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from flatmin.comparison import holm, paired_difference

rng = np.random.default_rng(0)


def all_signs(differences):
    """Return the two-sided p value over every pattern of signs, one by one."""
    observed = np.mean(differences)
    patterns = itertools.product((1, -1), repeat=len(differences))
    means = np.array([np.mean(np.array(signs) * differences) for signs in patterns])
    tolerance = 1e-12
    above = np.mean(means >= observed - tolerance)
    below = np.mean(means <= observed + tolerance)
    return min(1, 2 * min(above, below))


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_a_difference_by_hand(n, confidence):
    values, baseline = rng.normal(0.5, 1, n), rng.normal(size=n)
    found = paired_difference(values, baseline, confidence=confidence)
    t_test = stats.ttest_rel(values, baseline)
    interval = t_test.confidence_interval(confidence)
    assert found.n == n
    np.testing.assert_allclose(found.mean, np.mean(values - baseline))
    np.testing.assert_allclose((found.low, found.high), interval)
    np.testing.assert_allclose(found.p_value, all_signs(values - baseline))


def test_equal_signs_have_the_smallest_p_value():
    found = paired_difference(np.arange(1.0, 7), np.zeros(6))
    assert found.p_value == 2 / 2**6


def test_many_pairs_are_sampled():
    differences = rng.normal(0.4, 1, 40)
    found = paired_difference(differences, np.zeros(40))
    # Close to the t test's; the error of a share of 16,384 patterns is below 0.004.
    assert abs(found.p_value - stats.ttest_1samp(differences, 0).pvalue) < 0.02
    assert found == paired_difference(differences, np.zeros(40))


def test_pairs_that_are_not_whole_are_left_out():
    values = [1.0, 2.0, np.nan, 5.0, np.inf]
    found = paired_difference(values, [0.0, 0.5, 1.0, 1.0, 1.0])
    assert found == paired_difference([1.0, 2.0, 5.0], [0.0, 0.5, 1.0])
    one = paired_difference([1.0, np.nan], [0.5, 1.0])
    assert (one.mean, one.n) == (0.5, 1)
    assert np.isnan([one.low, one.high, one.p_value]).all()


def test_no_difference_at_all():
    found = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_holm_by_hand():
    p = [0.04, np.nan, 0.01, 0.02, 0.6]
    # Sorted: 4 · 0.01, 3 · 0.02, 2 · 0.04, and 0.6.
    np.testing.assert_allclose(holm(p), [0.08, np.nan, 0.04, 0.06, 0.6])
    # 3 · 0.5 is cut off at 1, and nothing behind it is smaller.
    np.testing.assert_allclose(holm([0.9, 0.5, 0.6]), [1, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0, 2.0], [1.0]), {}, r"one length.*\(2,\) and \(1,\)"),
        (([[1.0]], [[1.0]]), {}, "vectors"),
        (([1.0], [1.0]), {"confidence": 95}, "between 0 and 1. Got 95"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(*arguments, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 300.0, 50_000.0])
def test_patterns_that_tie_are_counted_whatever_the_values_are(offset, dtype):
    """Rounding of the differences is that of the values: 0.3 is 0.29999999999563443."""
    draws = np.random.default_rng(1)
    short = dtype is not np.float64
    for n in [5, 6, 8] * 10:
        steps, start = draws.integers(-5, 6, n), draws.integers(0, 50, n)
        values, baseline = offset + (start + steps) / 10, offset + start / 10
        if short:
            values, baseline = np.float32(values), np.float32(baseline)
        if dtype is torch.float32:
            values, baseline = torch.tensor(values), torch.tensor(baseline)
        assert paired_difference(values, baseline).p_value == all_signs(steps)


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e20, 1e150])
def test_a_pair_without_a_difference_hides_no_other(size):
    values = [size, *(size * np.arange(3.0, 9))]
    found = paired_difference(values, [size] * 7)
    assert found.p_value == 2 * 2 / 2**7
    hidden = paired_difference([1e20, 3, 4, 5, 6, 7, 8], [1e20, 1, 1, 1, 1, 1, 1])
    assert hidden.p_value == 2 * 2 / 2**7
