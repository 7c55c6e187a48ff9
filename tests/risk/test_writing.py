"""Modules and losses that write, in place, into the data that they are given."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.dynamics._criterion import MeanLoss
from flatmin.risk import EmpiricalRisk

N = 60


class Writing(nn.Module):
    """Two layers, and something that writes into x before them."""

    def __init__(self, write):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)
        self.write = write

    def forward(self, x):
        self.write(self, x)
        return self.outer(torch.tanh(0.05 * self.inner(x)))


def halve_large(_module, x):
    if (x > 10).any():
        x[x > 10] *= 0.5


def halve_large_past_the_count(_module, x):
    x.data[x > 10] *= 0.5


def halve_for_gradients(_module, x):
    if torch.is_grad_enabled():
        x *= 0.5


def halve_somewhere(module, x):
    if module.outer.bias[0] > 5:
        x *= 0.5


def data(*rows):
    """Return X with a large number in some rows, and y."""
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(N, 3, generator=rng, dtype=torch.float64)
    X[list(rows), 0] = 50.0
    return X, torch.arange(N) % 2


def written(write, X, y, theta):
    """Return the risk and its gradient of a copy of X, by PyTorch alone."""
    module = Writing(write).double()
    nn.utils.vector_to_parameters(theta, module.parameters())
    value = F.cross_entropy(module(X.clone()), y)
    gradients = torch.autograd.grad(value, list(module.parameters()))
    return value.detach(), nn.utils.parameters_to_vector(gradients)


@pytest.mark.parametrize("row", [1, 3, 30])  # not all are among the first few tried
@pytest.mark.parametrize(
    "write", [halve_large, halve_large_past_the_count, halve_for_gradients]
)
def test_a_module_may_write_into_some_examples(write, row):
    X, y = data(row)
    before = X.clone()
    risk = EmpiricalRisk(Writing(write).double(), "cross_entropy", X, y)
    theta = risk.params()
    value, gradient = written(write, before, y, theta)
    for _ in range(2):
        torch.testing.assert_close(risk.value_and_gradient(theta)[0], value)
        torch.testing.assert_close(risk.gradient(theta), gradient)
        two = risk.gradient(torch.stack([theta, theta]))
        torch.testing.assert_close(two, torch.stack([gradient, gradient]))
        rows = torch.cat(list(risk.per_example_gradients(theta)))
        torch.testing.assert_close(rows.mean(0), gradient)
    assert torch.equal(X, before)


QUANTITIES = {
    "value": lambda risk, theta: risk.value(theta),
    "gradient": lambda risk, theta: risk.gradient(theta),
    "chains": lambda risk, theta: risk.gradient(torch.stack([theta, theta])),
    "rows": lambda risk, theta: risk.squared_norms(theta),
    "hvp": lambda risk, theta: risk.linearize(theta).hvp(theta),
    "minibatch": lambda risk, theta: risk.batch_gradients(theta, torch.arange(N)[None]),
}


@pytest.mark.parametrize("ask", QUANTITIES.values(), ids=QUANTITIES)
def test_writing_into_a_later_chunk_is_refused_and_x_stays(ask):
    X, y = data(30)
    before = X.clone()
    module = Writing(halve_large).double()
    risk = EmpiricalRisk(module, "cross_entropy", X, y, chunk_size=13)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"leave its input as it is.*x\.clone\(\)"):
            ask(risk, risk.params())
    assert torch.equal(X, before)


@pytest.mark.parametrize("ask", QUANTITIES.values(), ids=QUANTITIES)
def test_writing_at_another_theta_is_refused_from_then_on(ask):
    module = Writing(halve_somewhere).double()
    risk = EmpiricalRisk(module, "cross_entropy", *data())
    theta = risk.params()
    risk.value(theta)
    with pytest.raises(ValueError, match="X may be changed now"):
        ask(risk, theta + 6)
    with pytest.raises(ValueError, match="this risk cannot be used any more"):
        risk.value(theta)


def test_no_copies_are_made_for_a_module_that_does_not_write():
    X, y = data()
    seen = []
    module = Writing(lambda _module, x: seen.append(x.data_ptr())).double()
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    seen.clear()
    risk.value(risk.params())
    assert seen == [X.data_ptr()]


def test_integers_that_are_tried_as_indices_stay():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.outer = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, x):
            x[x == 3] = 1
            return self.outer(self.table(x).mean(1))

    X = torch.tensor([[3, 1], [2, 3], [5, 3]])
    before = X.clone()
    EmpiricalRisk(Table(), "cross_entropy", X, torch.tensor([0, 1, 0]))
    assert torch.equal(X, before)


def smooth_labels(outputs, targets):
    targets = targets.mul_(0.9).add_(0.05)
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")


def clip_targets(outputs, targets):
    targets.clamp_(0, 1)
    return (outputs[:, 0] - targets) ** 2


def halve_negative_targets(outputs, targets):
    if (targets < 0).any():
        targets[targets < 0] *= 0.5
    return (outputs[:, 0] - targets) ** 2


def clip_outputs(outputs, targets):
    return (outputs.clamp_(-0.5, 0.5)[:, 0] - targets) ** 2


class Squared(nn.MSELoss):
    """A loss module of one's own, whose mean is compared, too."""

    def forward(self, outputs, targets):
        return super().forward(outputs[:, 0], targets.mul_(0.5))


def targets():
    y = torch.linspace(0, 1, N, dtype=torch.float64)
    y[30] = -4.0
    return y


LOSSES = [smooth_labels, clip_targets, halve_negative_targets, clip_outputs, Squared()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda loss: getattr(loss, "__name__", type(loss).__name__)
)
def test_a_loss_may_write_into_outputs_and_targets(loss, dtype):
    X, y = data()[0].to(dtype), targets().to(dtype)
    before, module = y.clone(), nn.Linear(3, 1).to(dtype)
    risk = EmpiricalRisk(module, loss, X, y)
    value = loss(module(X), before.clone()).mean()
    gradient = torch.autograd.grad(value, list(module.parameters()), create_graph=True)
    flat = nn.utils.parameters_to_vector(gradient)
    rows = [
        torch.autograd.grad(g, list(module.parameters()), retain_graph=True)
        for g in flat
    ]
    hessian = torch.stack([nn.utils.parameters_to_vector(row) for row in rows])
    theta = risk.params()
    close = torch.testing.assert_close
    for _ in range(3):
        close(risk.value(theta), value.detach())
        close(risk.gradient(theta), flat.detach())
        two = risk.gradient(torch.stack([theta, theta]))
        close(two, torch.stack([flat, flat]).detach())
        close(risk.linearize(theta).hvp(theta), hessian @ theta)
        close(risk.linearize(theta).ggn(theta), hessian @ theta)  # a linear module
    assert torch.equal(y, before)
    assert not risk.audit().fails


def test_a_loss_that_writes_into_a_later_chunk_is_refused_and_y_stays():
    y = targets()
    before = y.clone()
    module = nn.Linear(3, 1).double()
    risk = EmpiricalRisk(module, halve_negative_targets, data()[0], y, chunk_size=13)
    for ask in (risk.value, risk.gradient, risk.squared_norms):
        with pytest.raises(ValueError, match="halve_negative_targets must leave"):
            ask(risk.params())
    assert torch.equal(y, before)


def test_another_risk_of_a_loss_tries_it_anew():
    module, X = nn.Linear(3, 1).double(), data()[0]
    first = EmpiricalRisk(module, halve_negative_targets, X, targets().abs())
    y = targets()
    before = y.clone()
    risk = EmpiricalRisk(module, first._loss, X, y)
    expected = halve_negative_targets(module(X), before.clone()).mean()
    for _ in range(2):
        torch.testing.assert_close(risk.value(risk.params()), expected.detach())
    assert torch.equal(y, before)


def test_outside_of_a_risk_a_loss_is_called_under_vmap_and_gets_copies():
    criterion = MeanLoss(clip_targets)
    outputs, y = torch.rand(4, N, 1, dtype=torch.float64), targets()
    found = torch.func.vmap(criterion, in_dims=(0, None))(outputs, y)
    right = (outputs[..., 0] - y.clamp(0, 1)).square().mean(1)
    torch.testing.assert_close(found, right)
    assert torch.equal(y, targets())


@pytest.mark.parametrize("form", ["array", "mapping", "float64 array", "list of one"])
def test_what_the_caller_later_writes_into_arrays_is_not_seen(form):
    dtype = np.float64 if form == "float64 array" else np.float32
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, 3)).astype(dtype)
    targets = rng.normal(size=(8, 1)).astype(dtype)
    weights = rng.uniform(1, 2, size=8)
    X = {"input": inputs} if form == "mapping" else inputs
    X = [*inputs] if form == "list of one" else X
    risk = EmpiricalRisk(
        nn.Linear(3, 1), "squared_error", X, targets, sample_weight=weights
    )
    theta = risk.params()
    before = risk.value(theta)
    for array in (inputs, targets, weights):
        array *= 3
    assert torch.equal(risk.value(theta), before)
    labels = np.arange(8) % 2
    risk = EmpiricalRisk(nn.Linear(3, 2), "cross_entropy", X, labels)
    before = risk.value(risk.params())
    labels[:] = 0
    assert torch.equal(risk.value(risk.params()), before)


class Bounded(nn.Linear):
    """A layer that keeps its weight within bounds, which it does not reach at first."""

    def __init__(self, bound):
        super().__init__(3, 2)
        nn.init.uniform_(self.weight, 0.1, 0.5)
        self.bound = bound

    def forward(self, x):
        with torch.no_grad():
            self.bound(self.weight)
        return super().forward(x)


@pytest.mark.parametrize(
    "bound",
    [
        lambda w: w.copy_(w.renorm(2, 0, 5.0)),  # EEGNet
        lambda w: w.data.clamp_(-2, 2),  # the critic of a Wasserstein GAN
        lambda w: w.clamp_(min=0),  # weights that are not negative
        lambda w: w.copy_(torch.where(w.abs() < 0.05, 0.0, w)),  # pruned
    ],
)
def test_bounds_on_parameters_that_are_not_reached_at_first(bound):
    X, y = torch.randn(20, 3), torch.arange(20) % 2
    with pytest.raises(ValueError, match=r"writes, replaces or freezes them"):
        EmpiricalRisk(Bounded(bound), "cross_entropy", X, y)


class FixedPoint(nn.Module):
    """Iterates until it stands still, which it does for small weights only."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 2)
        self.inner.weight.data *= 0.5

    def forward(self, x):
        h = torch.zeros_like(x)
        while True:
            new = torch.tanh(self.inner(h) + x)
            if (new - h).abs().max() < 1e-6:
                return self.outer(new)
            h = new


def test_a_pass_that_never_ends_elsewhere_is_given_up():
    torch.manual_seed(0)
    X, y = torch.randn(20, 3), torch.arange(20) % 2
    module = FixedPoint()
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    right = F.cross_entropy(module(X), y).detach()
    torch.testing.assert_close(risk.value(risk.params()), right)
