"""Every way to sums and products, in float32, beside float64 where squares overflow.

Data, and with them gradients of the first layer, are of the order of 1e-20 to 1e20. The
reference is autograd in float64, one example at a time.
"""

import copy

import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

SCALES = [1e-20, 1e-10, 1.0, 1e10, 1e20]
N = 9


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, X):
        return self.attend(X, X, X, need_weights=False)[0].flatten(1)


class Reading(nn.Module):
    """Takes numbers of any size to a recurrent layer of order one."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.recurrent, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, X):
        return self.head(self.recurrent(X / self.scale)[0][:, -1]) * self.scale


# Linear in X, or nearly: what comes in at a scale goes out at that scale.
NETS = {
    "linear": (lambda _: nn.Linear(6, 4), (6,)),
    "linear, of sequences": (lambda _: nn.Linear(6, 4), (5, 6)),
    "mlp": (lambda _: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (6,)),
    "convolution, by patches": (lambda _: nn.Conv2d(2, 3, 3, padding=1), (2, 6, 6)),
    "convolution, by positions": (
        lambda _: nn.Conv2d(24, 32, 3, stride=2, padding=1),
        (24, 3, 3),
    ),
    "convolution, of many positions": (
        lambda _: nn.Conv2d(2, 3, 3, padding=1),
        (2, 16, 16),
    ),
    "convolution, dilated": (lambda _: nn.Conv2d(2, 3, 3, dilation=2), (2, 7, 7)),
    "convolution, grouped": (
        lambda _: nn.Conv2d(4, 6, 3, stride=2, groups=2),
        (4, 7, 7),
    ),
    "convolution, depthwise": (lambda _: nn.Conv1d(4, 8, 3, groups=4), (4, 9)),
    "norm": (lambda _: nn.BatchNorm1d(6).eval(), (6,)),
    "attention": (lambda _: Attending(), (4, 6)),
    "recurrent": (Reading, (4, 3)),
}


def along(outputs, y):
    """A loss whose slopes are y."""
    return (outputs.flatten(1) * y).sum(1)


def rows_in_float64(module, loss, X, y):
    module = copy.deepcopy(module).double()
    parameters = list(module.parameters())
    rows = []
    for x, target in zip(X.double().split(1), y.split(1), strict=True):
        target = target.double() if target.is_floating_point() else target
        value = loss(module(x), target).sum()
        rows.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
        )
    return torch.stack(rows)


def parts_are_close(found, right, sizes, rtol):
    """Compare the part of every parameter, relative to its own size."""
    for one, other in zip(found.split(sizes, -1), right.split(sizes, -1), strict=True):
        assert (one.double() - other).norm() <= rtol * other.norm()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NETS)
def test_sums_over_examples(name, scale):
    make, shape = NETS[name]
    torch.manual_seed(0)
    module, X = make(scale), torch.randn(N, *shape) * scale
    if name == "attention":  # of an order at which a softmax has a slope
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        with torch.no_grad():
            module.attend.in_proj_weight[:12] /= scale
            module.attend.in_proj_bias.zero_()
    with torch.no_grad():
        y = torch.randn(N, module(X).flatten(1).shape[1])
        if name == "attention":  # a gradient has a square of X
            y /= scale
    risk = EmpiricalRisk(module, along, X, y)
    theta, sizes = risk.params(), list(risk.layout.sizes)
    rows = rows_in_float64(module, along, X, y)
    found = torch.cat(list(risk.per_example_gradients(theta)))
    parts_are_close(found, rows, sizes, 3e-5)
    # Scalars of the trial, which have slopes of order one, have no such rows there.
    if (name, scale) != ("attention", 1e20):
        assert risk.paths["per-example sums"] == "by layer"
    norms = rows.square().sum(1)
    torch.testing.assert_close(risk.squared_norms(theta), norms, rtol=3e-5, atol=0)
    squares = rows.square().mean(0)
    parts_are_close(risk.squared_gradient_sum(theta) / N, squares, sizes, 3e-5)
    variances = rows.var(0, correction=0)
    parts_are_close(risk.gradient_variances(theta), variances, sizes, 3e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_products_of_a_graph(activation, scale, monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv1d(2, 3, 3, bias=False),
        activation(),
        nn.Flatten(),
        nn.Linear(12, 3, bias=False),
    )
    root = scale**0.5

    def squares(outputs, _y):
        """Are of the order of the scale, as H is."""
        return (outputs / root).square().sum(1)

    X, y = torch.randn(N, 2, 6) * scale, torch.zeros(N)
    risk = EmpiricalRisk(module, squares, X, y, chunk_size=5)
    theta, sizes = risk.params(), list(risk.layout.sizes)
    v = torch.randn(len(theta))
    point = risk.linearize(theta)
    found = {"hvp": point.hvp(v), "ggn": point.ggn(v), "jvp": point.jvp(v)}
    found["slopes"] = point.directional_derivatives(v)
    assert set(point.paths.values()) == {"graph"}

    wide, parts = copy.deepcopy(module).double(), v.double().split(sizes)
    parameters = list(wide.parameters())
    parts = [p.view_as(q) for p, q in zip(parts, parameters, strict=True)]
    outputs = wide(X.double())
    gradient = torch.autograd.grad(
        squares(outputs, y).mean(), parameters, create_graph=True
    )
    Hv = torch.autograd.grad(gradient, parameters, parts, retain_graph=True)
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, parameters, u, create_graph=True)
    (Jv,) = torch.autograd.grad(pulled, u, parts, retain_graph=True)
    Gv = torch.autograd.grad(outputs, parameters, 2 * Jv / scale / N)
    for name, right in {"hvp": Hv, "ggn": Gv}.items():
        right = torch.cat([part.flatten() for part in right])
        parts_are_close(found[name], right, sizes, 1e-5)
    slopes = (2 * outputs * Jv / scale).sum(1).detach()
    for name, right in {"jvp": Jv, "slopes": slopes}.items():
        assert (found[name].double() - right).norm() <= 1e-5 * right.norm()
