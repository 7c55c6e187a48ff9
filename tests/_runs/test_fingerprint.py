"""Alike for alike values, in every process, and different for different ones."""

import copy
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from torch import nn

from flatmin._runs.fingerprint import fingerprint
from flatmin.noise import GLDConst

from ..estimators._problems import Scaled


def _module(make, **params):
    torch.manual_seed(0)
    return make(**params)


def _loss(outputs, targets, factor=1.0):
    return factor * (outputs - targets).square()


def _other_loss(outputs, targets, factor=1.0):
    return factor + (outputs - targets).square()


def _closure(factor):
    return lambda outputs, targets: factor * (outputs - targets)


DIFFERENT = {
    "numbers": (1.0, 2.0),
    "arrays": (np.zeros(3), np.ones(3)),
    "tensors": (torch.zeros(3), torch.ones(3)),
    "lists": ([1, "a"], [1, "b"]),
    "dicts": ({"a": 1}, {"a": 2}),
    "functions": (_loss, _other_loss),
    "closures": (_closure(1), _closure(2)),
    "partials": (partial(_loss, factor=1.0), partial(_loss, factor=2.0)),
    "built-in functions": (torch.tanh, torch.sigmoid),
    "classes": (nn.ReLU, nn.Tanh),
    "laws": (GLDConst(), GLDConst(sigma=1.0)),
    "settings of a module": (_module(Scaled), _module(Scaled, factor=2.0)),
    "parameters": (_module(Scaled), Scaled()),
    "losses": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weights of losses": (
        nn.CrossEntropyLoss(weight=torch.ones(2)),
        nn.CrossEntropyLoss(weight=torch.zeros(2)),
    ),
    "recurrent networks": tuple(
        _module(nn.LSTM, input_size=2, hidden_size=2, bidirectional=b)
        for b in (False, True)
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_values_differ_and_copies_do_not(name):
    hashes = [joblib.hash(fingerprint(value)) for value in DIFFERENT[name]]
    assert hashes[0] != hashes[1]
    for value, expected in zip(DIFFERENT[name], hashes, strict=True):
        assert joblib.hash(fingerprint(copy.deepcopy(value))) == expected


@pytest.mark.parametrize("name", DIFFERENT)
def test_no_address_is_in_it(name):
    for value in DIFFERENT[name]:
        assert " at 0x" not in repr(fingerprint(value))


def test_strides_do_not_matter():
    array = np.arange(6.0).reshape(2, 3)
    assert joblib.hash(fingerprint(array)) == joblib.hash(
        fingerprint(np.asfortranarray(array))
    )


def test_a_value_may_hold_itself():
    ring = [1]
    ring.append(ring)
    assert fingerprint(ring) == [1, "itself"]
