"""Labels keep their values, whatever holds them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris

from flatmin import NoisyDiffusionClassifier
from flatmin.estimators._labels import as_labels

IDS = np.array([2**53, 2**53 + 1, 2**53 + 2])  # the first two are one float


@pytest.mark.parametrize("dtype", ["Int64", "UInt64", "Int8", "UInt16", "boolean"])
@pytest.mark.parametrize("make", [pd.Series, pd.array, pd.Index, pd.DataFrame])
def test_pandas_own_dtypes_are_read_as_those_of_numpy(dtype, make):
    plain = "bool" if dtype == "boolean" else dtype.lower()
    labels = (IDS if "64" in dtype else IDS % 2).astype(plain)
    got = as_labels(make(pd.array(labels.tolist(), dtype=dtype)), warn=False)
    assert got.dtype == labels.dtype
    np.testing.assert_array_equal(got, labels)


@pytest.mark.parametrize("dtype", ["Int64", "boolean"])
def test_a_missing_label_is_refused(dtype):
    for make in (pd.Series, pd.DataFrame):
        labels = make(pd.array([1, 0, pd.NA, 1], dtype=dtype))
        match = rf"y contains NaN.* Got 1 missing in y of dtype {dtype}; leave"
        with pytest.raises(ValueError, match=match):
            as_labels(labels)


def test_several_columns():
    frame = pd.DataFrame({"one": IDS, "two": pd.array(IDS.tolist(), dtype="Int64")})
    np.testing.assert_array_equal(as_labels(frame), np.stack([IDS, IDS], axis=1))


def test_large_integers_in_a_list():
    large = [2**63, 2**63 + 1, 2**64 - 1]
    assert as_labels(large).tolist() == large
    for mixed in ([-1, 2**63, 2**63 + 1], [np.uint64(2**53), np.int64(2**53 + 1)]):
        with pytest.raises(ValueError, match=r"beyond 2\*\*53 .* one integer dtype"):
            as_labels(mixed)
    assert as_labels([-1, 2.0]).tolist() == [-1, 2]


@pytest.mark.parametrize("dtype", ["Int64", "UInt64"])
def test_classes_that_are_one_float(dtype):
    X, y = load_iris(return_X_y=True)
    settings = {"max_iter": 60, "random_state": 0}
    plain = NoisyDiffusionClassifier(**settings).fit(X, y)
    labels = pd.Series(IDS[y], dtype=dtype)
    clf = NoisyDiffusionClassifier(**settings).fit(X, labels)
    assert clf.classes_.dtype == dtype.lower()
    assert clf.classes_.tolist() == IDS.tolist()
    np.testing.assert_array_equal(clf.predict(X), IDS[plain.predict(X)])
    assert clf.score(X, labels) == clf.score(X, IDS[y]) == plain.score(X, y)


@pytest.mark.parametrize(
    "y",
    [[0.0, 1e16, 2e16], pd.DataFrame({"a": [0.0, 1e16, 2e16]})],
    ids=["list", "frame"],
)
def test_large_labels_that_are_all_floats(y):
    assert as_labels(y, warn=False).ravel().tolist() == [0.0, 1e16, 2e16]
