"""What NumPy would misread is refused, with the name of the parameter."""

import numpy as np
import pandas as pd
import pytest
import torch

from flatmin._utils.arrays import check_readable, check_tensor, to_array, to_numpy


def test_masked_entries_are_refused_and_a_mask_of_none_is_not():
    whole = np.ma.array([1.0, 2.0], mask=[False, False])
    assert to_numpy("X", whole) is whole
    for data in (np.ma.array([1.0, 2.0], mask=[True, False]), [np.ma.masked, 1.0]):
        with pytest.raises(ValueError, match="X must hold a value in each place"):
            check_readable("X", data)


@pytest.mark.parametrize("data", [np.ones(2) + 1j, [1j, 2.0], np.complex64(1j), 1j])
def test_complex_arrays_are_refused(data):
    with pytest.raises(ValueError, match="y must hold real numbers"):
        check_readable("y", data)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2) + 1j, "real numbers. Got torch.complex64"),
        (torch.eye(2).to_sparse(), "dense tensor. Got torch.sparse_coo"),
        (torch.ones(2, device="meta"), "of the meta device"),
    ],
)
def test_tensors_without_plain_numbers_are_refused(tensor, message):
    for data in (tensor, [tensor]):
        with pytest.raises(TypeError, match=f"y must .*{message}"):
            check_readable("y", data)
    with pytest.raises(TypeError, match=f"v must .*{message}"):
        check_tensor("v", tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
def test_short_floats_become_float32_without_rounding(dtype):
    given = torch.tensor([0.5, -3.0, 448.0]).to(dtype)
    array = to_numpy("X", given)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, given.double().numpy())


@pytest.mark.parametrize(
    "data",
    [
        None,
        "x",
        ["1", "2"],
        [[1.0], [1.0, 2.0]],
        np.array(["2020-01-01"], "datetime64[D]"),
        object(),
    ],
)
def test_what_is_no_array_of_numbers(data):
    with pytest.raises(TypeError, match="grid must be an array of numbers"):
        to_array("grid", data, (None,))


def test_shapes_and_values():
    with pytest.raises((TypeError, ValueError), match=r"^a "):
        to_array("a", pd.Series([1, None], dtype="Int64"))
    np.testing.assert_array_equal(to_array("a", np.uint8([3, 4]), (2,)), [3.0, 4.0])
    with pytest.raises(ValueError, match=r"a must have shape \(n, 2\). Got \(2,\)"):
        to_array("a", [1, 2], (None, 2))
    with pytest.raises(ValueError, match="a contains NaN or infinity"):
        to_array("a", [np.nan])
    assert np.isnan(to_array("a", [np.nan], finite=False)).all()
