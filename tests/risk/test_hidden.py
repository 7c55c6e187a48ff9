"""Faults beside logits that a mask sets to -1e9 are seen, and right modules taken."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk
from flatmin.risk.hidden import hidden_difference
from flatmin.risk.losses.resolve_loss import resolve_loss

N = 200
NO_CLASS = torch.tensor([False, False, False, True])
FILLS = [-1e9, -1e4, float("-inf")]


class Masked(nn.Module):
    """A linear classifier of four classes, of which the last one is no class."""

    def __init__(self, fill):
        super().__init__()
        self.layer, self.fill = nn.Linear(5, 4), fill

    def forward(self, x):
        return self.logits(x).masked_fill(NO_CLASS, self.fill)

    def logits(self, x):
        return self.layer(x)


class Cached(Masked):
    """It keeps the size of the weights in eval mode."""

    size = None

    def logits(self, x):
        if self.training or self.size is None:
            self.size = self.layer.weight.detach().norm()
        return self.layer(x) / self.size


class Crowded(Masked):
    """It sees thirty examples, and no more."""

    def logits(self, x):
        return self.layer(x * (torch.arange(len(x)) < 30)[:, None])


class Branching(Masked):
    """It computes something else without gradients."""

    def logits(self, x):
        return self.layer(x) * (1 if torch.is_grad_enabled() else 2)


def data(dtype):
    torch.manual_seed(0)
    return torch.randn(N, 5, dtype=dtype), torch.arange(N) % 3


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "match"),
    [(Cached, "keeps something of an earlier pass"), (Crowded, "depend on the others")],
)
def test_what_a_mask_hides_is_refused(kind, match, dtype, fill):
    X, y = data(dtype)
    with pytest.raises(ValueError, match=match):
        EmpiricalRisk(kind(fill).to(dtype), "cross_entropy", X, y)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Masked, Branching])
def test_right_beside_a_mask(kind, dtype, fill):
    X, y = data(dtype)
    module = kind(fill).to(dtype)
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    logits = F.linear(X, module.layer.weight[:3], module.layer.bias[:3])
    right = F.cross_entropy(logits, y).detach()
    torch.testing.assert_close(risk.value(risk.params()), right)
    torch.testing.assert_close(risk.value_and_gradient(risk.params())[0], right)


def test_the_audit_of_a_masked_module():
    X, y = data(torch.float64)
    risk = EmpiricalRisk(Masked(-1e9).double(), "cross_entropy", X, y)
    assert risk.audit().fails == ()


def test_how_far_numbers_differ_beside_large_ones():
    y = torch.tensor([0])
    right = torch.tensor([[0.0, 1.0, -1e9]])
    found = torch.tensor([[0.0, 2.0, -1e9]])
    loss = resolve_loss("cross_entropy")
    assert hidden_difference(found[:, :2], right[:, :2], loss, y) == 0  # no gap
    # The small ones are off by 1 of 1; the loss, of two classes, by log of these.
    losses = torch.tensor([2.0, 1.0], dtype=torch.float64).exp().log1p()
    slopes = torch.tensor([2.0, 1.0], dtype=torch.float64).sigmoid()
    expected = [float(part[0] / part[1] - 1) for part in (losses, slopes)]
    off = hidden_difference(found, right, loss, y)
    assert off == pytest.approx(max(expected), rel=1e-6)


def test_what_rounding_leaves_counts_as_the_loss_does():
    # 1e-9 for -1e-9 beside numbers of order one: the slopes do not tell them apart.
    loss, y = resolve_loss("squared_error"), torch.tensor([[0.5, 0.5]])
    found, right = torch.tensor([[1.0, 1e-9]]), torch.tensor([[1.0, -1e-9]])
    assert hidden_difference(found, right, loss, y) < 1e-8
    # A loss that asks for the sign alone does.
    signs = resolve_loss(lambda f, y: (f / f.detach().abs() - y).square().sum(1))
    assert hidden_difference(found, right, signs, y) > 0.5
