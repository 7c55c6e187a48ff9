"""What a recorder notes, and what it refuses."""

import subprocess
import sys
import weakref

import pytest
import torch
from torch.func import functionalize, grad, jvp

from flatmin.risk import EmpiricalRisk
from flatmin.risk.autodiff.pullback import pull_back, with_its_graph
from flatmin.risk.products import graphs, two_stage
from flatmin.risk.products.recorder import record

from ._cases import Apply, problem

# PyTorch's own, when forward mode first loads.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def run(function, *args):
    """Record a function at ``args``, and return the graph as a function."""
    return compiled(*record(functionalize(function, remove="mutations"), *args))


def compiled(graph, constants):
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    return two_stage.as_function(graph, inputs, output.args[0], constants)


X, OTHER = torch.linspace(-1, 1, 6), torch.linspace(2, 3, 6)
BUFFER = torch.arange(6.0)


def written(x):
    y = x.clone()
    y[:3] += x[3:]
    y.view(2, 3)[0].mul_(2)
    return y.sin_()


@pytest.mark.parametrize(
    "function",
    [
        written,
        lambda x: x.view(2, 3).unbind()[1] * 2,
        lambda x: torch.stack(x.chunk(3)).max(0).values,
        lambda x: torch.cat([x, x[None, :2].squeeze(0)]),
        lambda x: x * BUFFER + x[BUFFER.long()],
        lambda x: x * (torch.tensor([2.0]) * 3).item() + torch.tensor(1.0),
        lambda x: x.cos() if BUFFER[1].sum().isnan().numel() else x,
        lambda x: grad(lambda z: (z**3).sum())(x),
        lambda x: jvp(lambda z: z**3, (x,), (x,))[1],
        lambda x: jvp(lambda z: pull_back(torch.sin, z, torch.cos), (x,), (BUFFER,))[1],
    ],
)
def test_a_record_is_of_the_function(function):
    recorded = run(function, X)
    for x in (X, OTHER):
        torch.testing.assert_close(recorded(x), function(x))


def test_a_list_within_a_result_is_of_the_function():
    def kernel(x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return x.sin(), [x.cos(), 2 * x]

    with torch.library._scoped_library("flatmin_tests", "DEF") as library:
        library.define("nested(Tensor x) -> (Tensor, Tensor[])")
        library.impl("nested", kernel, "CompositeExplicitAutograd")
        nested = torch.ops.flatmin_tests.nested.default
        graph, constants = record(lambda x: nested(x)[1][1] + nested(x)[0], X)
        recorded = compiled(graph, constants)
        assert constants == {}
        torch.testing.assert_close(recorded(OTHER), 2 * OTHER + OTHER.sin())


def test_constants_are_read_anew():
    scale = torch.tensor([1.0, 2.0])
    recorded = run(lambda x: x * scale, torch.ones(2))
    scale.mul_(10)
    assert recorded(torch.ones(2)).tolist() == [10.0, 20.0]


def test_one_tensor_given_twice_is_two_arguments():
    recorded = run(lambda a, b: a - b, X, X)
    assert torch.equal(recorded(OTHER, X), OTHER - X)


def caught(x):
    try:
        return x * 2 if x.sum() > 0 else x
    except RuntimeError:  # a way out of a module's own, as for tracers
        return x * 3


COUNTER = torch.zeros(())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x * x.sum().item(), "reads numbers that depend on"),
        (lambda x: x * (BUFFER.sum() + 1).item(), "reads numbers that depend on"),
        (lambda x: x if torch.equal(x, BUFFER) else 2 * x, "reads numbers that depend"),
        (caught, "reads numbers that depend on"),
        (lambda x: x[x > 0], "shapes that depend on numbers"),
        (lambda x: x + len(BUFFER.nonzero()), "shapes that depend on numbers"),
        (lambda x: x + COUNTER.add_(1), "writes into a tensor"),
        (lambda x: x + torch.randn(6), "draws random numbers"),
        (lambda x: x * torch.rand_like(torch.tensor(1.0)), "draws random numbers"),
        (lambda x: torch.dropout(x, 0.5, True), "draws random numbers"),
    ],
)
def test_what_a_graph_cannot_hold(function, reason):
    with pytest.raises(RuntimeError, match=reason):
        record(functionalize(function, remove="mutations"), X)
    assert COUNTER == 0, "it was written before it was refused"


def test_a_record_holds_no_numbers():
    seen = []

    def function(x):
        y = x * 2
        seen.append(weakref.ref(y))
        return y.sin()

    held = record(function, X)
    assert held[1] == {}
    assert seen[0]() is None


@pytest.mark.parametrize("keeps", [False, True])
def test_a_pullback_is_that_of_autograd(keeps):
    def function(x):
        return (x**2).cumsum(0).sin()

    x, v = X.double().requires_grad_(), OTHER.double()
    expected = torch.autograd.functional.jacobian(
        lambda x: torch.autograd.grad(function(x), x, v, create_graph=True)[0], x
    )
    x = x.detach()

    def pulled(x):
        return pull_back(function, x, lambda _: v)

    if keeps:
        with with_its_graph():
            found = jvp(pulled, (x,), (v,))[1]
    else:
        found = jvp(pulled, (x,), (v,))[1]
    torch.testing.assert_close(found, expected @ v)
    assert torch.equal(pull_back(lambda _: v, x, torch.ones_like), 0 * v)


def test_a_hook_is_differentiated(monkeypatch):
    """It runs in the backward pass, where gradients are off."""
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    p = problem("mlp")

    def hooked(parts, X):
        h = parts["net"](X)
        if h.requires_grad:
            h.register_hook(lambda slopes: 2 * slopes / 2)
        return h

    risk = EmpiricalRisk(
        Apply(hooked, net=p.module), "cross_entropy", p.X, p.y, dtype="float64"
    )
    found = risk.linearize(p.theta).hvp(p.theta)
    torch.testing.assert_close(found, p.risk().linearize(p.theta).hvp(p.theta))
    assert risk.paths == {"hvp": "graph"}


def test_formulas_are_loaded_where_an_operation_needs_them():
    """No layer tells that the module takes a norm."""
    code = """if True:
        import sys, torch
        from torch.nn.functional import cross_entropy, layer_norm
        from flatmin import EmpiricalRisk
        from flatmin.risk.products import graphs
        graphs._WORTH_A_GRAPH = 0
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.last = torch.nn.Linear(3, 4)
                self.first = torch.nn.Linear(3, 3)
            def forward(self, X):
                return self.last(layer_norm(self.first(X), (3,)))
        net, y = Net().double(), torch.arange(5) % 4
        X = torch.randn(5, 3, dtype=torch.float64)
        risk = EmpiricalRisk(net, "cross_entropy", X, y)
        v = torch.randn(risk.n_params, dtype=torch.float64)
        found = risk.linearize(risk.params()).hvp(v)
        parameters = list(net.parameters())
        slopes = torch.autograd.grad(
            cross_entropy(net(X), y), parameters, create_graph=True
        )
        along = sum((s.flatten() @ p) for s, p in zip(
            slopes, v.split([p.numel() for p in parameters])
        ))
        right = torch.autograd.grad(along, parameters)
        right = torch.cat([part.flatten() for part in right])
        print(risk.paths["hvp"], torch.allclose(found, right))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["graph", "True"]


def test_products_do_not_load_the_compiler():
    code = """if True:
        import sys, torch
        from flatmin import EmpiricalRisk
        from flatmin.risk.products import graphs
        graphs._WORTH_A_GRAPH = 0
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh())
        X, y = torch.randn(5, 3), torch.arange(5) % 4
        risk = EmpiricalRisk(net, "cross_entropy", X, y)
        point, v = risk.linearize(risk.params()), torch.ones(risk.n_params)
        for name in ("hvp", "ggn", "jvp", "directional_derivatives"):
            getattr(point, name)(v)
        point.vjp(torch.ones(5, 4))
        names = ("torch._dynamo", "torch._decomp.decompositions_for_jvp")
        print(*set(point.paths.values()), any(name in sys.modules for name in names))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["graph", "False"]
