"""The share of right classes, against outputs and targets compared by NumPy."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin import EmpiricalRisk

N, C, T = 9, 4, 5
RNG = np.random.default_rng(0)
X = torch.as_tensor(RNG.normal(size=(N, 3)))
LABELS = torch.as_tensor(RNG.integers(0, C, N))
TOKENS = torch.as_tensor(RNG.integers(0, C, (N, T)))


def linear(n_outputs, *last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, n_outputs), *last).double()


def some(targets, value):
    """Leave out a third of them."""
    return targets.where(
        torch.arange(targets.numel()).view(targets.shape) % 3 > 0, value
    )


def share(predicted, targets, counted=None):
    right = np.asarray(predicted) == np.asarray(targets)
    return right.mean() if counted is None else right[np.asarray(counted)].mean()


CASES = {
    "classes": (linear(C), "cross_entropy", LABELS, None),
    "some left out": (linear(C), "cross_entropy", some(LABELS, -100), -100),
    "padding is class 0": (
        linear(C),
        nn.CrossEntropyLoss(ignore_index=0),
        LABELS,
        0,
    ),
    "log-probabilities": (
        linear(C, nn.LogSoftmax(1)),
        nn.NLLLoss(ignore_index=2),
        LABELS,
        2,
    ),
    "a function": (
        linear(C),
        lambda f, y: F.cross_entropy(f, y, reduction="none"),
        some(LABELS, -100),
        -100,
    ),
    "positions": (
        linear(C * T, nn.Unflatten(1, (C, T))),
        "cross_entropy",
        some(TOKENS, -100),
        -100,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_size", [2, None])
def test_the_largest_output(name, chunk_size):
    net, loss, y, left_out = CASES[name]
    weights = np.arange(1.0, N + 1)  # of no effect
    options = {"sample_weight": weights, "chunk_size": chunk_size}
    risk = EmpiricalRisk(net, loss, X, y, **options)
    with torch.no_grad():
        predicted = net(X).argmax(1)
    found = risk.accuracy(risk.params())
    assert float(found) == share(predicted, y, y != left_out)


def test_of_the_next_token():
    net, y = linear(C * T, nn.Unflatten(1, (T, C))), some(TOKENS, -100)
    risk = EmpiricalRisk(net, "next_token", X, y, chunk_size=4)
    with torch.no_grad():
        predicted = net(X).argmax(2)
    found = float(risk.accuracy(risk.params()))
    assert found == share(predicted[:, :-1], y[:, 1:], y[:, 1:] != -100)


def test_of_logits_of_two_classes():
    net, y = linear(2), torch.as_tensor(RNG.integers(0, 2, (N, 2))).double()
    risk = EmpiricalRisk(net, "binary_cross_entropy", X, y)
    with torch.no_grad():
        predicted = net(X) > 0
    assert float(risk.accuracy(risk.params())) == share(predicted, y)


def test_what_has_none():
    risk = EmpiricalRisk(linear(C), "cross_entropy", X, LABELS)
    assert torch.isnan(risk.accuracy(risk.params() * torch.nan))
    empty = EmpiricalRisk(linear(C), "cross_entropy", X, some(LABELS, -100))
    assert torch.isnan(empty.subset(torch.tensor([0, 3])).accuracy(risk.params()))
    for loss, y in [("squared_error", torch.randn(N, C)), ("cross_entropy", None)]:
        soft = torch.full((N, C), 1 / C) if y is None else y
        numbers = EmpiricalRisk(linear(C), loss, X, soft.double())
        with pytest.raises(ValueError, match=f"needs classes as targets.*'{loss}'"):
            numbers.accuracy(risk.params())
