"""Sums over rows that are products of factors, beside the rows in float64."""

import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk
from flatmin.risk.example_sums import parameter_sums
from flatmin.risk.example_sums.factors import (
    Factors,
    moments_by_outputs,
    norms_by_positions,
)


def factors(scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(11, 4, 6, generator=generator) * scale
    return inputs, torch.randn(11, 4, 5, generator=generator) / scale**0.5


def rows_of(inputs, slopes):
    return (slopes.double().mT @ inputs.double()).flatten(1)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_norms_by_positions(scale):
    inputs, slopes = factors(scale)
    right = rows_of(inputs, slopes).square().sum(1)
    found = norms_by_positions([Factors(inputs, slopes)])
    torch.testing.assert_close(found, right, rtol=1e-12, atol=0)


def test_norms_keep_their_digits_where_positions_cancel():
    inputs, slopes = factors()
    inputs[:, 1], slopes[:, 1] = inputs[:, 0], -slopes[:, 0] * (1 + 2.0**-12)
    inputs[:, 2:] = 0.0  # what is left is 1 / 4096 of either
    right = rows_of(inputs, slopes).square().sum(1)
    found = norms_by_positions([Factors(inputs, slopes)])
    torch.testing.assert_close(found, right, rtol=1e-7, atol=0)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("n_numbers", [1, 150, 10**6])
def test_moments_by_outputs(scale, n_numbers):
    inputs, slopes = factors()
    inputs = inputs * scale * torch.tensor([1.0, 1.0, 0.0, 1e-15, 1e15, 1.0])
    rows = rows_of(inputs, slopes)
    mean, squares = moments_by_outputs(Factors(inputs, slopes), n_numbers)
    spread = rows.std(0, correction=0)
    assert ((mean - rows.mean(0)).abs() <= 1e-6 * spread).all()
    right = (rows - rows.mean(0)).square().sum(0)
    torch.testing.assert_close(squares, right, rtol=3e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-24, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("bias", [True, False])
def test_variances_at_every_scale(scale, bias):
    # Squares of these in float32 have no digits, or none left above.
    torch.manual_seed(1)
    X = torch.randn(13, 4, 6) * scale
    net = nn.Sequential(nn.Conv1d(4, 3, 3, bias=bias), nn.Flatten())
    for module in (net, _SeenByVmap(net)):
        risk = EmpiricalRisk(module, "squared_error", X, torch.ones(13, 12))
        found = risk.gradient_variances(risk.params())
        rows = torch.cat(list(risk.per_example_gradients(risk.params()))).double()
        right = rows.var(0, correction=0)
        torch.testing.assert_close(found, right, rtol=3e-6, atol=0)


class _SeenByVmap(nn.Module):
    """Has no rule by layer."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + 0 * self.net[0].weight.sum() * x.flatten(1)[:, :1]


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (
            nn.Sequential(
                nn.Conv2d(3, 24, 3, stride=2, padding=1),
                nn.Tanh(),
                nn.AdaptiveAvgPool2d(2),
                nn.Conv2d(24, 32, (3, 2), padding=1, bias=False),
                nn.Tanh(),
                nn.Flatten(),
                nn.LazyLinear(3),
            ),
            (3, 9, 9),
        ),
        (
            nn.Sequential(nn.Linear(48, 64), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)),
            (3, 48),
        ),
        (
            nn.Sequential(
                nn.Conv1d(20, 40, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)
            ),
            (20, 5),
        ),
    ],
    ids=["conv2d", "sequence", "conv1d"],
)
@pytest.mark.parametrize("at_a_time", [64, 1 << 19])
def test_few_positions_take_the_factors(net, shape, at_a_time, monkeypatch):
    monkeypatch.setattr(parameter_sums, "_AT_A_TIME_CPU", at_a_time)
    taken = set()

    def watch(name):
        true = getattr(parameter_sums, name)

        def watched(*given):
            taken.add(name)
            return true(*given)

        monkeypatch.setattr(parameter_sums, name, watched)

    watch("norms_by_positions")
    watch("moments_by_outputs")
    torch.manual_seed(0)
    X, y = torch.randn(9, *shape), torch.randint(3, (9,))
    net(X)
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    theta = risk.params()
    norms, variances = risk.squared_norms(theta), risk.gradient_variances(theta)
    assert "norms_by_positions" in taken
    assert ("moments_by_outputs" in taken) == (at_a_time == 64)
    assert risk.paths["per-example sums"] == "by layer"

    net = net.double()
    rows = []
    for x, target in zip(X.double(), y, strict=True):
        loss = nn.functional.cross_entropy(net(x[None]), target[None])
        grads = torch.autograd.grad(loss, list(net.parameters()))
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    rows = torch.stack(rows)
    net.float()
    torch.testing.assert_close(norms, rows.square().sum(1), rtol=1e-5, atol=0)
    right = rows.var(0, correction=0)
    assert (variances - right).norm() <= 1e-5 * right.norm()


class _Tied(nn.Module):
    """Tokens to logits by one matrix, and by its transpose where asked."""

    def __init__(self, n_tokens=60, d=24, padding=None):
        super().__init__()
        self.words = nn.Embedding(n_tokens, d, padding_idx=padding)
        self.head = nn.Linear(d, n_tokens, bias=False)
        self.head.weight = self.words.weight
        self.mix = nn.Linear(d, d)

    def forward(self, tokens):
        hidden = torch.tanh(self.mix(self.words(tokens)))
        return self.head(hidden).transpose(1, 2)


class _Several(nn.Module):
    """One linear layer three times, and a convolution twice."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(40, 40)
        self.conv = nn.Conv1d(24, 24, 3, padding=1)
        self.out = nn.Linear(40, 3)

    def forward(self, x):
        x = self.conv(torch.tanh(self.conv(x.reshape(len(x), 24, -1)[:, :, :2])))
        x = x.flatten(1)[:, :40]
        for _ in range(3):
            x = torch.tanh(self.linear(x))
        return self.out(x)


def _case(name):
    if name == "several":
        return _Several(), torch.randn(7, 24, 3), torch.randint(3, (7,))
    X, y = torch.randint(60, (7, 5)), torch.randint(60, (7, 5))
    X[:, 3] = X[:, 1]  # a token twice
    X[2] = y[2] = 0
    return _Tied(padding=0 if name == "padding" else None), X, y


@pytest.mark.parametrize("name", ["tied", "padding", "several"])
def test_uses_of_one_parameter_add_up_before_they_are_squared(name, monkeypatch):
    n_uses = []

    def watched(uses):
        n_uses.append(len(uses))
        return norms_by_positions(uses)

    monkeypatch.setattr(parameter_sums, "norms_by_positions", watched)
    torch.manual_seed(2)
    net, X, y = _case(name)
    net.double()
    X = X.double() if X.is_floating_point() else X
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    found = risk.squared_norms(risk.params())
    assert risk.paths["per-example sums"] == "by layer"
    assert max(n_uses) == (3 if name == "several" else 2)

    right = []
    for x, target in zip(X, y, strict=True):
        loss = nn.functional.cross_entropy(net(x[None]), target[None])
        grads = torch.autograd.grad(loss, list(net.parameters()))
        right.append(sum(grad.square().sum() for grad in grads))
    torch.testing.assert_close(found, torch.stack(right), rtol=1e-11, atol=0)
