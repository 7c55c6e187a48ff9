"""Storable values."""

from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from flatmin._runs.storable import as_storable, from_storable, move_storable


def test_storable_values_are_kept_in_new_containers():
    held = {
        "a": [1, 2.5, "x", None, True],
        "b": (torch.ones(2), {3}),
        4: Counter({7: 2}),
        "c": OrderedDict(d=[]),
    }
    found = as_storable(held, "it")
    assert found.keys() == held.keys()
    assert found["a"] == held["a"]
    assert found["a"] is not held["a"]
    assert found["b"][0].data_ptr() == held["b"][0].data_ptr()
    assert found["b"][1] == {3}
    assert found[4] == held[4]
    assert type(found[4]) is Counter


def test_numpys_numbers_become_pythons():
    found = as_storable([np.float64(0.1), np.int32(3), np.bool_(True)], "it")
    assert found == [0.1, 3, True]
    assert [type(value) for value in found] == [float, int, bool]


def test_a_parameter_becomes_a_tensor():
    found = as_storable(nn.Parameter(torch.ones(2)), "it")
    assert type(found) is torch.Tensor
    assert not found.requires_grad


def test_arrays_come_back():
    held = {"a": (np.arange(6.0).reshape(2, 3), np.array([True]), np.int8([1]))}
    found = from_storable(as_storable(held, "it"))["a"]
    for array, expected in zip(found, held["a"], strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("value", [print, np.array("a"), object(), nn.Linear(1, 1)])
def test_other_values_are_named(value):
    kind = type(value).__name__
    with pytest.raises(TypeError, match=rf"it\['a'\]\[1\] must .* Got .*{kind}"):
        as_storable({"a": [0, value]}, "it")


def test_tensors_move():
    held = {"a": [torch.ones(2), 1], "b": (None, {2})}
    found = move_storable(held, torch.device("meta"))
    assert found["a"][0].device.type == "meta"
    assert found["a"][1:] == [1]
    assert found["b"] == (None, {2})
