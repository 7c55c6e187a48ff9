"""Tr(Σ) from norms, as of networks with many parameters, against rows in float64."""

import pytest
import torch
from torch import nn

from flatmin.curvature import _covariance, covariance_trace
from flatmin.risk import EmpiricalRisk


@pytest.fixture(autouse=True)
def _every_network_is_large(monkeypatch):
    monkeypatch.setattr(_covariance, "_LARGE", 1)


class Tied(nn.Module):
    """A decoder whose head multiplies by the embedding of the tokens."""

    def __init__(self):
        super().__init__()
        self.tokens, self.inner = nn.Embedding(11, 4), nn.Linear(4, 4)

    def forward(self, X):
        hidden = self.inner(self.tokens(X)).tanh()
        return nn.functional.linear(hidden, self.tokens.weight).transpose(1, 2)


def tied():
    X = torch.randint(0, 11, (9, 5), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    return Tied(), X, X.roll(-1, 1)


def regression():
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(12, 3, generator=rng)
    torch.manual_seed(0)
    return nn.Linear(3, 1), X, X.sum(1, keepdim=True)


def by_rows(module, loss, X, y):
    """Return Tr(Σ) and the mean of ‖gᵢ‖², one gradient at a time."""
    module = module.double()
    X = X.double() if X.is_floating_point() else X
    y = y.double() if y.is_floating_point() else y
    rows = []
    for x, label in zip(X, y, strict=True):
        value = loss(module(x[None]), label[None])
        parts = torch.autograd.grad(value, list(module.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    rows = torch.stack(rows)
    return (rows - rows.mean(0)).square().sum() / len(rows), rows.square().sum(1).mean()


def count_sweeps(risk, monkeypatch):
    asked, variances = [], risk.gradient_variances
    monkeypatch.setattr(
        risk, "gradient_variances", lambda theta: asked.append(1) or variances(theta)
    )
    return asked


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_tied_embeddings(l2, monkeypatch):
    module, X, y = tied()
    risk = EmpiricalRisk(module, "cross_entropy", X, y, l2=l2)
    asked = count_sweeps(risk, monkeypatch)
    found = covariance_trace(risk, risk.params())
    mean_over_tokens = nn.CrossEntropyLoss()
    right, _ = by_rows(module, mean_over_tokens, X, y)
    torch.testing.assert_close(found, right, rtol=1e-5, atol=0)
    assert not asked


def test_alike_gradients_keep_their_digits(monkeypatch):
    module, X, _ = regression()
    X = 1 + 1e-3 * X
    y = torch.full((len(X), 1), 50.0)
    risk = EmpiricalRisk(module, nn.MSELoss(), X, y)
    asked = count_sweeps(risk, monkeypatch)
    found = covariance_trace(risk, risk.params())
    right, square = by_rows(module, nn.MSELoss(), X, y)
    assert right < 1e-4 * square
    assert asked
    torch.testing.assert_close(found, right, rtol=1e-3, atol=0)


def test_infinite_gradients_are_named():
    module, X, y = regression()
    risk = EmpiricalRisk(module, lambda f, y: (f - y).abs().sqrt().squeeze(1), X, y)
    theta = torch.tensor([1.0, 1.0, 1.0, 0.0])  # fits all
    with pytest.raises(FloatingPointError, match="finite"):
        covariance_trace(risk, theta)
