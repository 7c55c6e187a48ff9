"""One risk that follows a module through its training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

N = 24
X = torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(0)).double()
y = torch.arange(N) % 3


class Net(nn.Module):
    """With what θ does not hold: running statistics, a buffer, a frozen scale."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten()
        )
        self.head = nn.Linear(32, 3)
        self.register_buffer("scale", torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        return self.head(self.body(x)) * self.scale * self.frozen


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double()


def train(net):
    """Move parameters, running statistics, the buffer and the frozen scale."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(net(X), y).backward()
        optimizer.step()
        net.scale.mul_(1.2)
        net.frozen.data.mul_(0.9)


def by_hand(net, v):
    """Return L, g and H v of a module in evaluation mode by double backward."""
    net = copy.deepcopy(net).eval()
    params = [p for p in net.parameters() if p.requires_grad]

    def flat(tensors):
        return torch.cat([t.reshape(-1) for t in tensors])

    loss = F.cross_entropy(net(X), y)
    gradient = flat(torch.autograd.grad(loss, params, create_graph=True))
    product = flat(torch.autograd.grad(gradient @ v, params))
    return loss.detach(), gradient.detach(), product


@pytest.mark.parametrize("path", ["graph", "reference"])
def test_it_is_the_risk_of_the_module_as_it_is_now(net, path, monkeypatch):
    if path == "graph":
        monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 1)
    risk = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="frozen", chunk_size=10)
    part = risk.subset(torch.arange(6))
    v = torch.linspace(-1, 1, risk.n_params, dtype=torch.float64)
    for each in (risk, part):  # paths are chosen, graphs are made
        each.linearize(each.params()).hvp(v)
        each.squared_norms(each.params())
    train(net)
    before = [tensor.clone() for tensor in net.state_dict().values()]
    risk.update_from(net)
    theta = risk.params()
    loss, gradient, product = by_hand(net, v)
    point = risk.linearize(theta)
    torch.testing.assert_close(risk.value(theta), loss)
    torch.testing.assert_close(risk.gradient(theta), gradient)
    torch.testing.assert_close(point.hvp(v), product)
    assert point.paths["hvp"].startswith(path)
    fresh = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="frozen")
    torch.testing.assert_close(risk.squared_norms(theta), fresh.squared_norms(theta))
    some = fresh.subset(torch.arange(6)).linearize(theta).hvp(v)
    torch.testing.assert_close(part.linearize(theta).hvp(v), some)
    assert all(map(torch.equal, before, net.state_dict().values()))
    assert net.training


def test_another_dtype_and_mode(net):
    risk = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="frozen")
    train(net)
    risk.update_from(net.float().eval())
    theta = risk.params()
    assert theta.dtype == torch.float64
    loss, _, _ = by_hand(net.double(), torch.zeros(risk.n_params, dtype=torch.float64))
    torch.testing.assert_close(risk.value(theta), loss)


def test_a_subset_follows_by_itself(net):
    part = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="frozen").subset(
        torch.arange(6)
    )
    train(net)
    part.update_from(net)
    wanted = F.cross_entropy(copy.deepcopy(net).eval()(X[:6]), y[:6])
    torch.testing.assert_close(part.value(part.params()), wanted.detach())


def test_a_point_from_before_is_refused(net):
    risk = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="frozen")
    point = risk.linearize(risk.params())
    risk.update_from(net)
    with pytest.raises(RuntimeError, match=r"before update_from; linearize again"):
        point.hvp(risk.params())


def unfreeze(net):
    net.frozen.requires_grad_(True)


def widen(net):
    net.head = nn.Linear(32, 4).double()


def rename(net):
    net.tail = net.head
    del net.head


def change(net):
    net.body[1].eps = 0.1


def exchange(net):
    net.body[2] = nn.ReLU()


def test_a_counter_may_count(net):
    risk = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="frozen")
    train(net)
    net.n_steps = 5
    risk.update_from(net)
    loss, _, _ = by_hand(net, torch.zeros(risk.n_params, dtype=torch.float64))
    torch.testing.assert_close(risk.value(risk.params()), loss)


@pytest.mark.parametrize(
    ("alter", "what"),
    [
        (unfreeze, "frozen, which is trained in one"),
        (widen, r"head.weight of shape \(4, 32\) and not \(3, 32\)"),
        (rename, r"head.bias, head.weight, tail.bias, tail.weight"),
        (change, "other settings, which gives other outputs"),
        (exchange, "other settings, which gives other outputs"),
    ],
)
def test_a_module_of_another_form_is_refused(net, alter, what):
    risk = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="frozen")
    before, value = risk.params(), risk.value(risk.params())
    train(net)
    alter(net)
    with pytest.raises(ValueError, match=what):
        risk.update_from(net)
    assert torch.equal(risk.params(), before)
    assert torch.equal(risk.value(before), value)


def test_a_module_that_writes_into_its_input_leaves_the_data():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.step = nn.Linear(2, 2), 0

        def forward(self, x):
            return self.linear(x.mul_(2))

    module, inputs = Writes(), torch.ones(3, 2)
    risk = EmpiricalRisk(module, "cross_entropy", inputs, torch.tensor([0, 1, 0]))
    module.step = 7  # another setting: both are run on the examples of the trials
    risk.update_from(module)
    assert torch.equal(inputs, torch.ones(3, 2))
    assert torch.equal(risk._few.X, torch.ones(3, 2))


class Hidden(Net):
    """With numbers that are neither buffers nor plain settings."""

    def __init__(self):
        super().__init__()
        self.factor = torch.ones(())
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        return super().forward(x) * self.factor * (1 + int(self.n_steps))


def hook(net):
    net.head.register_forward_hook(lambda module, args, outputs: 2 * outputs)


@pytest.mark.parametrize("alter", [lambda net: net.factor.fill_(2), hook])
def test_what_is_no_setting_is_seen_in_the_outputs(alter):
    net = Hidden().double()
    risk = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="frozen")
    alter(net)
    with pytest.raises(ValueError, match="other settings, which gives other outputs"):
        risk.update_from(net)
    other = risk.with_module(net)
    loss, _, _ = by_hand(net, torch.zeros(risk.n_params, dtype=torch.float64))
    torch.testing.assert_close(other.value(other.params()), loss)


def test_a_number_that_python_reads_is_no_constant_of_the_graph(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 1)
    net = Hidden().double()
    risk = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="frozen")
    v = torch.linspace(-1, 1, risk.n_params, dtype=torch.float64)
    risk.linearize(risk.params()).hvp(v)
    net.n_steps += 1
    risk.update_from(net)
    found = risk.linearize(risk.params()).hvp(v)
    torch.testing.assert_close(found, by_hand(net, v)[2])
