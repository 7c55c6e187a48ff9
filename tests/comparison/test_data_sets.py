"""Data sets are data: the same rows as from arrays, also in workers."""

import threading

import joblib
import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch.utils.data import DataLoader, Dataset, TensorDataset

from flatmin import compare_dynamics

from ._problems import classifier, digits, norm

X, y, X_test, y_test = digits()


def dataset(inputs=X, targets=y):
    return TensorDataset(torch.tensor(inputs).float(), torch.tensor(targets))


def compare(*data, n_jobs=1, **options):
    settings = {"estimator": classifier(), "n_seeds": [3], "n_jobs": n_jobs}
    return compare_dynamics(["gd", "sgd"], *data, **settings | options)


@pytest.fixture(scope="module")
def from_arrays():
    return compare(X, y, X_test=X_test, y_test=y_test, keep_params=True)


@pytest.mark.parametrize(
    ("data", "tests"),
    [
        (dataset(), {"X_test": dataset(X_test, y_test)}),
        (
            DataLoader(dataset(), batch_size=7),
            {"X_test": X_test.astype("float32"), "y_test": y_test},
        ),
    ],
)
def test_it_gives_what_arrays_give(from_arrays, data, tests):
    found = compare(data, **tests, keep_params=True)
    columns = ["loss", "train_score", "test_loss", "test_score", "distance"]
    assert not len(found.failures)
    # The same examples in chunks of another size.
    for column in columns:
        np.testing.assert_allclose(
            found.table[column], from_arrays.table[column], rtol=1e-3, atol=1e-6
        )
    measured = found.measure({"norm": norm})
    again = found.measure({"norm": norm}, data, estimator=classifier())
    assert_frame_equal(measured, again)
    wanted = np.linalg.norm(from_arrays.params("sgd", 3, "noise"))
    assert measured.loc[("noise", "sgd", 3), "norm"] == pytest.approx(wanted, rel=1e-3)


def test_workers_read_it_too(tmp_path):
    one = compare(dataset(), checkpoint_dir=tmp_path)
    two = compare(dataset(), n_jobs=2)
    for found in (one, two):
        assert not len(found.failures)
    assert_frame_equal(one.table, two.table)
    # Known by its examples: it is found, and another one is refused.
    assert_frame_equal(compare(dataset(), checkpoint_dir=tmp_path).table, one.table)
    assert one.protocol["data_hash"] == two.protocol["data_hash"]
    other = dataset(X + 0.01)
    assert compare(other).protocol["data_hash"] != one.protocol["data_hash"]
    with pytest.raises(ValueError, match="differs from this one in data"):
        compare(other, checkpoint_dir=tmp_path)


class Held(Dataset):
    """With something that no process can hand over, as an open file of HDF5."""

    def __init__(self):
        self.lock = threading.Lock()

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return torch.tensor(X[index]).float(), int(y[index])


def test_what_cannot_travel_is_refused_before_work():
    held = Held()
    wanted = r"X must be a data set that can be pickled.* Got Held"
    with pytest.raises(TypeError, match=wanted):
        compare(held, n_jobs=2)
    with joblib.parallel_config(backend="threading"):
        assert not len(compare(held, n_jobs=2).failures)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((dataset(), y), {}, "y must be None with a TensorDataset"),
        ((DataLoader(dataset(), shuffle=True),), {}, "one order, again and again"),
        ((X,), {}, "y must be given, unless X is a data set"),
        ((dataset(),), {"X_test": X_test}, "come together. Got y_test=None"),
        ((dataset(),), {"y_test": y_test}, "come together. Got X_test=None"),
    ],
)
def test_bad_data_sets(data, options, message):
    with pytest.raises(ValueError, match=message):
        compare(*data, **options)


def test_a_back_end_that_keeps_results_back_is_refused_by_name():
    def never(seed):
        raise AssertionError

    with (
        joblib.parallel_config(backend="multiprocessing"),
        pytest.raises(ValueError, match=r"Got 'multiprocessing'; choose one of them"),
    ):
        compare(never, n_jobs=2)
