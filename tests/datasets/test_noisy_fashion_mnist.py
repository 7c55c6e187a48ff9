"""Fashion-MNIST with wrong labels."""

import numpy as np
import pytest
from scipy import stats

from flatmin.datasets import load_noisy_fashion_mnist


@pytest.fixture
def load(small, tmp_path):
    """Return the loader, bound to the small stand-in of 40 + 12 images."""
    small.write(tmp_path)

    def load_small(*args, **kwargs):
        return load_noisy_fashion_mnist(*args, data_home=tmp_path, **kwargs)

    return load_small


def test_images_and_labels_are_those_of_the_indices(load, small):
    bunch = load(10, 5, random_state=0)
    assert len(set(bunch.indices)) == 15
    images = small.images["train"][bunch.indices, np.newaxis]
    np.testing.assert_array_equal(
        bunch.data, images.astype(np.float32) / np.float32(255), strict=True
    )
    labels = small.labels["train"][bunch.indices]
    np.testing.assert_array_equal(bunch.clean_target, labels.astype(np.int64))


def test_exactly_n_corrupt_labels_are_wrong(load):
    bunch = load(10, 5, random_state=0)
    assert bunch.corrupted.sum() == 5
    np.testing.assert_array_equal(bunch.target != bunch.clean_target, bunch.corrupted)


def test_the_test_set_is_whole_and_clean(load, small):
    bunch = load(10, 5, random_state=0)
    images = small.images["test"][:, np.newaxis].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(bunch.data_test, images, strict=True)
    labels = small.labels["test"].astype(np.int64)
    np.testing.assert_array_equal(bunch.target_test, labels, strict=True)


def test_types_of_the_rest(load):
    bunch = load(10, 5, random_state=0)
    assert bunch.target.dtype == bunch.clean_target.dtype == np.int64
    assert bunch.corrupted.dtype == bool
    assert bunch.target_names.shape == (10,)
    assert "wrong" in bunch.DESCR


def test_the_tuple_holds_the_arrays_of_the_bunch(load):
    bunch = load(10, 5, random_state=0)
    X, y = load(10, 5, random_state=0, return_X_y=True)
    np.testing.assert_array_equal(X, bunch.data, strict=True)
    np.testing.assert_array_equal(y, bunch.target, strict=True)


def test_seeds(load):
    first, again, other = (load(10, 5, random_state=seed) for seed in (0, 0, 1))
    for key in ["indices", "corrupted", "target", "data"]:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first.indices, other.indices)


def test_without_a_seed_draws_differ(load):
    assert not np.array_equal(load(20, 5).indices, load(20, 5).indices)


@pytest.mark.parametrize("allow_same", [False, True])
def test_new_labels_come_from_all_ten_classes(load, allow_same):
    shifts = np.zeros(10, dtype=int)
    for seed in range(50):
        bunch = load(0, 40, allow_same=allow_same, random_state=seed)
        shifts += np.bincount((bunch.target - bunch.clean_target) % 10, minlength=10)
    if not allow_same:
        assert shifts[0] == 0
        shifts = shifts[1:]
    assert stats.chisquare(shifts).pvalue > 1e-3


def test_a_single_image_can_be_wrong(load):
    bunch = load(0, 1, random_state=0)
    assert bunch.target[0] != bunch.clean_target[0]


def test_without_corruption_all_labels_are_right(load):
    bunch = load(40, 0, random_state=0)
    np.testing.assert_array_equal(bunch.target, bunch.clean_target)
    np.testing.assert_array_equal(np.sort(bunch.indices), np.arange(40))


@pytest.mark.parametrize("sizes", [(36, 5), (0, 0)])
def test_sizes_out_of_range_are_refused(load, sizes):
    match = f"must be from 1 to 40, .* Got n_clean={sizes[0]} and n_corrupt={sizes[1]}"
    with pytest.raises(ValueError, match=match):
        load(*sizes)


@pytest.mark.parametrize(
    ("sizes", "error", "match"),
    [
        ((-1, 5), ValueError, "n_clean must be an integer of at least 0"),
        ((5, -1), ValueError, "n_corrupt must be an integer of at least 0"),
        ((5.0, 1), ValueError, "n_clean must be an integer"),
    ],
)
def test_sizes_are_counts(load, sizes, error, match):
    with pytest.raises(error, match=match):
        load(*sizes)


def test_missing_files(offline, tmp_path):
    with pytest.raises(OSError, match="download_if_missing is False"):
        load_noisy_fashion_mnist(data_home=tmp_path, download_if_missing=False)


def test_the_papers_data(fashion_mnist_home):
    bunch = load_noisy_fashion_mnist(data_home=fashion_mnist_home, random_state=0)
    assert bunch.data.shape == (1200, 1, 28, 28)
    assert bunch.data_test.shape == (10_000, 1, 28, 28)
    assert bunch.corrupted.sum() == 200
    np.testing.assert_array_equal(bunch.target != bunch.clean_target, bunch.corrupted)
    np.testing.assert_array_equal(np.bincount(bunch.target_test), 1000)
