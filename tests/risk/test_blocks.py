"""Products with a block of H, G and J, against the block of dense float64 autograd."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flatmin import EmpiricalRisk
from flatmin.curvature import FisherOperator, GGNOperator, HessianOperator
from flatmin.risk import ModuleLoss
from flatmin.risk.products import graphs

from ._cases import CASES, make_risk, oracle, problem

pytestmark = pytest.mark.filterwarnings("ignore:The loss does not depend")


def close(actual, wanted, rtol=1e-9):
    assert actual.shape == wanted.shape
    error = torch.linalg.vector_norm(actual.double() - wanted)
    assert error <= rtol * torch.linalg.vector_norm(wanted) + 1e-12, float(error)


def products(point, dense, part):
    """Yield what a block gives and what it should."""
    rng = torch.Generator().manual_seed(7)
    v = torch.randn(part.stop - part.start, generator=rng, dtype=torch.float64)
    u = torch.randn(dense.outputs.shape, generator=rng, dtype=torch.float64)
    J = dense.jacobians[..., part]
    yield point.hvp(v), dense.hessian[part, part] @ v
    yield point.ggn(v), dense.gauss_newton[part, part] @ v
    yield point.jvp(v), (J @ v).view(u.shape)
    yield point.vjp(u), J.flatten(0, 1).mT @ u.flatten()
    yield point.directional_derivatives(v), dense.gradients[:, part] @ v


@pytest.mark.parametrize("name", CASES)
def test_every_network(name):
    risk, theta = make_risk(name, 3, True), problem(name).theta
    dense = oracle(name, weighted=True)
    for parameter in {risk.layout.names[0], risk.layout.names[-1]}:
        point = risk.linearize(theta, select=parameter)
        for got, wanted in products(point, dense, risk.layout.slice(parameter)):
            close(got, wanted)


def test_by_a_graph(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    risk = copy.deepcopy(make_risk("convolutional", 3, False))
    theta, first = problem("convolutional").theta, risk.layout.names[0]
    part = risk.layout.slice(first)
    risk.linearize(theta.flip(0), select=first).hvp(theta[part])
    # What the rest of θ was there is a constant of that graph.
    point = risk.linearize(theta, select=first)
    for got, wanted in products(point, oracle("convolutional"), part):
        close(got, wanted)
    assert set(point.paths.values()) == {"graph"}


class Bypassed(nn.Module):
    """A layer without effect, one that is detached, and one that is used twice."""

    def __init__(self):
        super().__init__()
        self.spare, self.body = nn.Linear(2, 2), nn.Linear(3, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, X):
        return self.head(self.head(self.body(X).detach().tanh()))


@pytest.mark.parametrize("work", [0, 1 << 24])
def test_layers_that_the_loss_does_not_depend_on(work, monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", work)
    torch.manual_seed(0)
    net, X, y = Bypassed().double(), torch.randn(6, 3).double(), torch.arange(6) % 2
    risk = EmpiricalRisk(net, "cross_entropy", X, y)
    theta = risk.params()

    def loss(head):
        W, b = head[:4].view(2, 2), head[4:]
        hidden = net.body(X).detach().tanh()
        return nn.functional.cross_entropy((hidden @ W.T + b) @ W.T + b, y)

    H = torch.autograd.functional.hessian(loss, theta[-6:])
    v = torch.randn(6).double()
    close(risk.linearize(theta, select="head").hvp(v), H @ v)
    for layer in ("spare", "body"):
        point = risk.linearize(theta, select=layer)
        size = len(risk.layout.indices(layer))
        assert not point.hvp(torch.ones(size).double()).any()
        assert not point.ggn(torch.ones(size).double()).any()
        assert not point.directional_derivatives(torch.ones(size).double()).any()


def test_a_layer_near_the_outputs_needs_no_pass_below_it():
    """The point of it: convolutions of a product, whole and by layer."""
    risk, theta = make_risk("convolutional", 3, False), problem("convolutional").theta
    whole, head = risk.linearize(theta), risk.linearize(theta, select="parts.head")
    assert head.paths == whole.paths == {}
    done = {}
    for name, point in (("whole", whole), ("head", head)):
        v = torch.ones_like(point.theta)
        point.hvp(v)
        with Convolutions() as found:
            point.hvp(v)
        done[name] = found.n
    assert done["whole"] > done["head"] == 6  # two layers forward, in three chunks


def test_the_penalty_and_the_matrices_of_curvature():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    X, y = torch.randn(6, 3).double(), torch.arange(6) % 3
    risk = EmpiricalRisk(net, "cross_entropy", X, y, l2=0.3)
    theta, part = risk.params(), slice(8, None)
    for make, name in [(HessianOperator, "hvp"), (GGNOperator, "ggn")]:
        point = risk.linearize(theta)
        columns = [getattr(point, name)(e) for e in torch.eye(17).double()]
        dense = torch.stack(columns)[part, part]
        close(make(risk, theta, select="2").to_dense(), dense)
    G = GGNOperator(risk, theta, select="2").to_dense()
    F = FisherOperator(risk, theta, select="2").to_dense()
    close(F, G - 0.3 * torch.eye(9).double())


def test_after_an_update_a_block_is_made_anew():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False)).double().eval()
    X, y = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).double(), torch.zeros(2).double()
    risk = EmpiricalRisk(net, "squared_error", X, y)
    theta = risk.params()
    before = risk.linearize(theta, select="1")
    before.hvp(theta[4:])
    net[0].running_var.fill_(0.25)
    risk.update_from(net)
    with pytest.raises(RuntimeError, match="linearize again"):
        before.hvp(theta[4:])
    scaled = net[0](X).detach()
    after = risk.linearize(theta, select="1").hvp(torch.ones(2).double())
    close(after, 2 / 2 * scaled.T @ scaled @ torch.ones(2).double())


def slope(module, x, y):
    """A loss of the derivative in the inputs, which has no G."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        outputs = module(x)
        (slopes,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
    return (slopes.sum(1) - outputs.squeeze(1)).square()


def test_a_loss_that_calls_the_module():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    X, v = torch.randn(5, 2).double(), torch.randn(9).double()
    risk = EmpiricalRisk(net, ModuleLoss(slope), X)
    theta = risk.params()

    def loss(first):
        W, b = first[:6].view(3, 2), first[6:]
        hidden = (X @ W.T + b).tanh()
        slopes = (1 - hidden.square()) * net[2].weight @ W.sum(1)
        outputs = hidden @ net[2].weight.squeeze(0) + net[2].bias
        return (slopes - outputs).square().mean()

    H = torch.autograd.functional.hessian(loss, theta[:9])
    close(risk.linearize(theta, select="0").hvp(v), H @ v)


def test_of_a_data_set_and_of_a_subset():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    X, y = torch.randn(7, 3).double(), torch.arange(7) % 3
    v = torch.randn(9).double()
    hidden = net[:2](X).detach()

    def loss(head, some):
        logits = hidden[some] @ head[:6].view(3, 2).T + head[6:]
        return nn.functional.cross_entropy(logits, y[some])

    dataset = torch.utils.data.TensorDataset(X, y)
    for options in ({}, {"hvp": "finite_difference"}):
        risk = EmpiricalRisk(net, "cross_entropy", dataset, chunk_size=3, **options)
        theta = risk.params()
        for some in (torch.arange(7), torch.tensor([1, 4, 2])):
            part = risk if len(some) == 7 else risk.subset(some)
            H = torch.autograd.functional.hessian(partial(loss, some=some), theta[8:])
            found = part.linearize(theta, select="2").hvp(v)
            close(found, H @ v, 1e-7 if options else 1e-9)


def test_statistics_of_the_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    X, y, v = (
        torch.randn(10, 3).double(),
        torch.arange(10) % 2,
        torch.randn(16).double(),
    )
    net = net.double()
    risk = EmpiricalRisk(net, "cross_entropy", X, y, batch_norm="batch")
    theta = risk.params()

    def loss(first):
        hidden = X @ first[:12].view(4, 3).T + first[12:]
        mean, var = hidden.mean(0), hidden.var(0, correction=0)
        scaled = net[1].weight * (hidden - mean) / (var + net[1].eps).sqrt()
        return nn.functional.cross_entropy(net[3]((scaled + net[1].bias).tanh()), y)

    H = torch.autograd.functional.hessian(loss, theta[:16])
    close(risk.linearize(theta, select="0").hvp(v), H @ v)


class Convolutions(TorchDispatchMode):
    """Counts them, forward and backward."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += "convolution" in str(func)
        return func(*args, **(kwargs or {}))
