"""bfloat16 and float16: right to their precision, or refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


class Autocast(nn.Module):
    """Computes in less than its parameters, and gives out float32."""

    def __init__(self, dtype):
        super().__init__()
        self.inner, self.dtype = network(), dtype

    def forward(self, X):
        with torch.autocast(X.device.type, dtype=self.dtype):
            return self.inner(X).float()


@pytest.fixture
def data():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield torch.randn(20, 6), torch.arange(20) % 3


@pytest.mark.parametrize("dtype", ROUNDING)
def test_parameters_are_refused_by_name(data, dtype):
    with pytest.raises(ValueError, match=f"dtype must be.*Got {dtype}.*converted"):
        EmpiricalRisk(network().to(dtype), "cross_entropy", *data)
    risk = EmpiricalRisk(network().to(dtype), "cross_entropy", *data, dtype="float32")
    assert risk.dtype == torch.float32


@pytest.mark.parametrize("dtype", ROUNDING)
def test_autocast_is_right_to_its_precision_or_refused(data, dtype):
    X, y = data
    risk = EmpiricalRisk(Autocast(dtype), "cross_entropy", X, y)
    theta = risk.params()
    module = network().double()
    params = list(module.parameters())
    rows = []
    for i in range(len(X)):
        loss = F.cross_entropy(module(X[i : i + 1].double()), y[i : i + 1])
        parts = torch.autograd.grad(loss, params)
        rows.append(torch.cat([part.flatten() for part in parts]))
    rows = torch.stack(rows)
    loss = F.cross_entropy(module(X.double()), y)
    slopes = torch.autograd.grad(loss, params, create_graph=True)
    v = torch.randn(len(theta), dtype=torch.float64)
    slope = torch.cat([part.flatten() for part in slopes]) @ v
    H = torch.cat([part.flatten() for part in torch.autograd.grad(slope, params)])
    asked = {
        "value": (lambda: risk.value(theta), loss.detach()),
        "gradient": (lambda: risk.gradient(theta), rows.mean(0)),
        "norms": (lambda: risk.squared_norms(theta), rows.square().sum(1)),
        "variances": (
            lambda: risk.gradient_variances(theta),
            rows.var(0, correction=0),
        ),
        "H v": (lambda: risk.linearize(theta).hvp(v.float()), H),
    }
    refused = []
    for name, (ask, right) in asked.items():
        try:
            found = ask()
        except ValueError as error:
            refused.append((name, str(error)))
            continue
        off = (found.double() - right).norm() / right.norm()
        assert 0 < off < 3 * ROUNDING[dtype], name
    lowest = str(dtype).removeprefix("torch.")
    assert all(
        name == "H v" and f"casts to {lowest} in the module change it" in text
        for name, text in refused
    )
    assert lowest in risk.paths["precision"]
    assert "one example at a time" in risk.paths["per-example sums"]
