"""Optimizers by name or class."""

import pytest
import torch

from flatmin.dynamics import OPTIMIZERS, resolve_optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_names(name):
    assert resolve_optimizer(name, {"weight_decay": 0.1}) is OPTIMIZERS[name]


def test_classes_and_groups():
    kind = torch.optim.AdamW
    assert resolve_optimizer(kind, {"param_groups": [], "betas": (0.0, 0.0)}) is kind


@pytest.mark.parametrize(
    ("optimizer", "params", "error", "match"),
    [
        ("adma", {}, ValueError, "Unknown optimizer 'adma'; did you mean 'adam'"),
        ("sgd", {"params": []}, ValueError, "parameter of the optimizer SGD 'params'"),
        ("adam", {"momentum": 0.9}, ValueError, "optimizer Adam 'momentum'"),
        (torch.optim.LBFGS, {}, ValueError, "LBFGS evaluates several gradients a step"),
        (torch.nn.Linear, {}, TypeError, "a class from torch.optim. Got <class"),
        (None, {}, TypeError, "Got None"),
    ],
)
def test_errors(optimizer, params, error, match):
    with pytest.raises(error, match=match):
        resolve_optimizer(optimizer, params)
