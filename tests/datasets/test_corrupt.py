"""Label noise."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flatmin.datasets import corrupt_labels

LABELS = {
    "bool": np.tile([True, False], 30),
    "int8": np.tile(np.array([-1, 5, 7], dtype=np.int8), 20),
    "float of whole numbers": np.tile([0.0, 1.0, 2.0], 20),
    "str of unequal lengths": np.tile(["a", "bbbb", "cc"], 20),
    "object": np.tile(np.array(["a", "bbbb", "cc"], dtype=object), 20),
    "list": ["a", "bbbb", "cc"] * 20,
    "column": np.tile([0, 1, 2], 20)[:, np.newaxis],
}


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("n", [0, 1, 17, 60])
def test_exactly_n_labels_are_wrong(y, n):
    y_corrupt, corrupted = corrupt_labels(y, n, random_state=0)
    flat = np.ravel(y)
    assert corrupted.dtype == bool
    assert corrupted.sum() == n
    np.testing.assert_array_equal(y_corrupt != flat, corrupted)
    assert y_corrupt.dtype == flat.dtype
    assert set(y_corrupt) <= set(flat)


def test_a_series_gives_arrays():
    y = pd.Series(["a", "b"] * 10, index=range(100, 120))
    y_corrupt, corrupted = corrupt_labels(y, 5, random_state=0)
    assert isinstance(y_corrupt, np.ndarray)
    np.testing.assert_array_equal(y_corrupt != y.to_numpy(), corrupted)


def test_the_input_is_not_modified():
    y = np.tile([0, 1, 2], 20)
    before = y.copy()
    y.flags.writeable = False
    y_corrupt, _ = corrupt_labels(y, 60, random_state=0)
    np.testing.assert_array_equal(y, before)
    assert y_corrupt.flags.writeable


def test_nothing_to_corrupt_still_gives_a_copy():
    y = np.array([0, 1])
    y_corrupt, _ = corrupt_labels(y, 0)
    assert not np.shares_memory(y_corrupt, y)


@pytest.mark.parametrize(
    ("fraction", "n"), [(0, 0), (0.1, 1), (0.16, 2), (0.5, 5), (1.0, 10)]
)
def test_fraction_is_rounded_to_a_number_of_labels(fraction, n):
    y = np.arange(10) % 2
    _, corrupted = corrupt_labels(y, fraction=fraction, random_state=0)
    assert corrupted.sum() == n


def transitions(y, y_corrupt):
    """Count how often each class became each other."""
    return pd.crosstab(y, y_corrupt).to_numpy()


def test_wrong_labels_are_uniform_over_the_other_classes():
    y = np.repeat([2, 3, 5, 7], 3000)
    y_corrupt, _ = corrupt_labels(y, len(y), random_state=0)
    counts = transitions(y, y_corrupt)
    np.testing.assert_array_equal(np.diag(counts), 0)
    others = counts[~np.eye(4, dtype=bool)].reshape(4, 3)
    assert np.all(stats.chisquare(others, axis=1).pvalue > 1e-3)


def test_allow_same_is_uniform_over_all_classes():
    y = np.repeat([2, 3, 5, 7], 3000)
    y_corrupt, corrupted = corrupt_labels(y, len(y), allow_same=True, random_state=0)
    counts = transitions(y, y_corrupt)
    assert corrupted.all()
    assert np.all(stats.chisquare(counts, axis=1).pvalue > 1e-3)


def test_every_example_is_as_likely_to_be_chosen():
    y = [0, 0, 0, 0, 1]
    chosen = [
        np.flatnonzero(corrupt_labels(y, 1, random_state=seed)[1])[0]
        for seed in range(1000)
    ]
    assert stats.chisquare(np.bincount(chosen, minlength=5)).pvalue > 1e-3


def test_a_seed_repeats_and_a_generator_moves_on():
    y = np.tile([0, 1, 2], 100)
    first, _ = corrupt_labels(y, 50, random_state=1)
    again, _ = corrupt_labels(y, 50, random_state=1)
    other, _ = corrupt_labels(y, 50, random_state=2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)

    rng = np.random.RandomState(1)
    from_rng, _ = corrupt_labels(y, 50, random_state=rng)
    moved_on, _ = corrupt_labels(y, 50, random_state=rng)
    np.testing.assert_array_equal(from_rng, first)
    assert not np.array_equal(moved_on, first)


def test_without_a_seed_draws_differ():
    y = np.tile([0, 1, 2], 100)
    assert not np.array_equal(corrupt_labels(y, 50)[0], corrupt_labels(y, 50)[0])


@pytest.mark.parametrize("arguments", [{}, {"n": 1, "fraction": 0.5}])
def test_exactly_one_of_n_and_fraction_is_required(arguments):
    with pytest.raises(ValueError, match=r"exactly one of n and fraction\. Got n="):
        corrupt_labels([0, 1], **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n": 3}, ValueError, "n=3 labels cannot be redrawn, y has only 2. Lower n"),
        ({"n": -1}, ValueError, "n must be an integer of at least 0"),
        ({"n": 1.0}, ValueError, "n must be an integer"),
        ({"fraction": 1.1}, ValueError, "fraction must be a number between 0 and 1"),
        ({"fraction": -0.1}, ValueError, "fraction must be a number between 0 and 1"),
        ({"fraction": "0.1"}, ValueError, "fraction must be a number"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        corrupt_labels([0, 1], **arguments)


@pytest.mark.parametrize("allow_same", [False, True])
def test_one_class_is_refused(allow_same):
    with pytest.raises(ValueError, match=r"two classes.* Got y with .* \['a'\]"):
        corrupt_labels(["a", "a"], 1, allow_same=allow_same)


def test_regression_targets_are_refused():
    with pytest.raises(ValueError, match="continuous"):
        corrupt_labels([0.5, 1.5, 2.5], 1)


def test_a_table_of_labels_is_refused():
    with pytest.raises(ValueError, match="1d array"):
        corrupt_labels([[0, 1], [1, 0]], 1)
