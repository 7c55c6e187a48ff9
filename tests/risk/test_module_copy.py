"""The private copy of a module: the right numbers, or the reason why there are none."""

import copy
import functools
import pickle
import threading
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from flatmin import EmpiricalRisk

from .. import oracles

X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
y = torch.tensor([0, 1, 2, 0, 1, 2, 0])


class Net(nn.Module):
    """Two linear layers, with something between them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def between(self, h):
        return h.tanh()

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def as_double(module):
    """Convert in place, whatever the module says to ``double``."""
    constants = getattr(module, "constants", list)()
    for tensor in (*module.parameters(), *module.buffers(), *constants):
        if tensor.is_complex():
            tensor.data = tensor.data.to(torch.complex128)
        elif tensor.is_floating_point():
            tensor.data = tensor.data.double()
    return module


def reference(module, theta, X=X, y=y):
    """Return value, rows and Hessian at θ by autograd, of a module that is not shared."""
    as_double(module)
    params = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, part in zip(params, theta.split([p.numel() for p in params])):
            p.copy_(part.view(p.shape))

    def flat(value):
        found = torch.autograd.grad(
            value, params, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([g.reshape(-1) for g in found])

    X = X.to(torch.complex128) if X.is_complex() else X
    X = X.double() if X.is_floating_point() else X
    old_norm = mock.patch("torch.nn.utils.weight_norm._weight_norm", oracles.weight_norm)
    with oracles.right_second_derivatives(), old_norm:
        losses = F.cross_entropy(module(X), y, reduction="none")
        rows = torch.stack([flat(loss) for loss in losses])
        H = torch.stack([flat(g) for g in rows.mean(0)])
    return losses.mean().detach(), rows.detach(), H.detach()


def elsewhere(risk):
    """Return a θ that is not the module's own."""
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn(risk.n_params, generator=rng, dtype=torch.float64)
    return risk.params().double() + 0.3 * noise


def assert_right(risk, module, X=X, y=y):
    theta = elsewhere(risk)
    value, rows, H = reference(module, theta, X, y)
    close = functools.partial(torch.testing.assert_close, rtol=1e-7, atol=1e-9)
    close(risk.value(theta), value)
    close(risk.gradient(theta), rows.mean(0))
    close(torch.cat(list(risk.per_example_gradients(theta))), rows)
    variances = (rows - rows.mean(0)).square().mean(0)
    close(risk.gradient_variances(theta), variances)
    v = theta.cos()
    close(risk.linearize(theta).hvp(v), H @ v)
    close(risk.linearize(theta).directional_derivatives(v), rows @ v)


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


# -- modules that are right ------------------------------------------------------------


class Keeps(Net):
    """Activations in attributes, lists, dicts and objects."""

    def __init__(self):
        super().__init__()
        self.seen = {"list": [], "object": threading.local}

    def between(self, h):
        self.kept = h
        self.seen["list"] = [h.tanh()]
        return self.seen["list"][0]


def keeps():
    module = Keeps()
    module(X)
    return module


def stores_by_a_hook():
    module, store = Net(), {}
    module.stored = store
    module.first.register_forward_hook(_Store(store))
    module(X)
    return module


class _Store:
    def __init__(self, store):
        self.store = store

    def __call__(self, _module, _inputs, outputs):
        self.store["outputs"] = outputs


def pruned():
    module = Net()
    prune.l1_unstructured(module.first, "weight", 0.4)
    prune.random_structured(module.last, "weight", 1, dim=0)
    module(X)
    return module


def old_weight_norm():
    module = Net()
    nn.utils.weight_norm(module.first)
    module(X)
    return module


def old_spectral_norm():
    module = Net()
    nn.utils.spectral_norm(module.first)
    module(X)
    return module.eval()


def parametrized():
    module = Net()
    parametrizations.weight_norm(module.first)
    parametrizations.orthogonal(module.last)
    return module


class Rotary(Net):
    """A complex buffer and a frozen complex parameter."""

    def __init__(self):
        super().__init__()
        angles = torch.linspace(0, 2, 4)
        self.register_buffer("turn", torch.polar(torch.ones(4), angles))
        self.constant = nn.Parameter(torch.polar(angles, -angles), requires_grad=False)

    def forward(self, x):
        h = self.first(x)[:, :4]
        h = torch.complex(h, h.sin()) * self.turn * self.constant
        return self.last(torch.cat([h.real, h.imag[:, :1]], 1))


class RealPairs(nn.Module):
    """A complex weight as two real numbers, at an odd place of θ and at an even one."""

    def __init__(self, read=torch.view_as_complex):
        super().__init__()
        self.read = read
        self.scale = nn.Parameter(torch.tensor(0.7))
        weight = torch.randn(3, 4, dtype=torch.complex64)
        self.weight = nn.Parameter(torch.view_as_real(weight))
        self.bias = nn.Parameter(torch.randn(3))
        self.other = nn.Parameter(torch.view_as_real(weight[0]).clone())

    def forward(self, x):
        x = x * self.read(self.other)
        h = x @ self.read(self.weight).T
        return (self.scale * h).abs() + self.bias


class OtherTo(Net):
    """Converts itself in ways of its own."""

    def to(self, where):
        raise AssertionError(where)

    def double(self, extra):
        raise AssertionError(extra)

    def _apply(self, function, extra):
        raise AssertionError(extra)


class SecondName(Net):
    """Plain constants, and parameters of other modules, beside the registered ones."""

    def __init__(self):
        super().__init__()
        self.scale = torch.tensor(2.0)
        self.matrix = torch.randn(5, 5)
        self.parts = [nn.Linear(5, 5)]

    def constants(self):
        return [self.scale, self.matrix, *self.parts[0].parameters()]

    def between(self, h):
        return self.parts[0](h @ self.matrix).tanh() * self.scale


class Containers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(4, 5), torch.randn(5, 3)])
        self.biases = nn.ParameterDict({"b": torch.randn(3)})

    def forward(self, x):
        return (x @ self.weights[0]).tanh() @ self.weights[1] + self.biases["b"]


class ByProperty(Net):
    """A part's weight behind a property, which is computed in every pass."""

    @property
    def doubled(self):
        return 2 * self.first.weight

    def forward(self, x):
        return self.last(F.linear(x, self.doubled).tanh() + self.first.bias)


class Positions(Net):
    """A buffer that grows with the input, and a counter that nothing reads."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def between(self, h):
        self.calls += 1
        if len(self.rows) < h.shape[1]:
            self.rows = torch.linspace(0, 1, h.shape[1], dtype=h.dtype)
        return (h + self.rows).tanh()


class Merging(Net):
    """LoRA: eval() adds the update to the weight, train() takes it away again."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(5, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            sign = -1 if mode else 1
            self.first.weight.data += sign * (self.up @ self.down).data
            self.merged = not mode
        return self

    def forward(self, x):
        update = 0 if self.merged else x @ self.down.T @ self.up.T
        return self.last((self.first(x) + update).tanh())


class EvalSwitches(Net):
    """Has another function in eval mode, which eval() alone switches to."""

    def __init__(self):
        super().__init__()
        self.sharpness = 1.0

    def train(self, mode=True):
        self.sharpness = 1.0 if mode else 2.0
        return super().train(mode)

    def between(self, h):
        return (self.sharpness * h).tanh()


def with_disabled_train():
    module = Net()
    module.first.train = _nothing
    return module.eval()


def _nothing(_mode=True):
    return None


def fx_graph():
    module = torch.fx.symbolic_trace(Net())
    module.register_forward_hook(_Double())
    return module


class _Double:
    def __call__(self, _module, _inputs, outputs):
        return 2 * outputs


def columns_of_one_matrix():
    module, whole = Net(), torch.randn(5, 5)
    module.first.weight = nn.Parameter(whole[:, :4])
    module.first.bias = nn.Parameter(whole[:, 4])
    return module


def instance_norm():
    norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), norm, nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)
    )


RIGHT = {
    "keeps activations": keeps,
    "stores by a hook": stores_by_a_hook,
    "pruned": pruned,
    "old weight norm": old_weight_norm,
    "old spectral norm": old_spectral_norm,
    "parametrized": parametrized,
    "complex constants": Rotary,
    "real pairs": RealPairs,
    "another to": OtherTo,
    "not registered": SecondName,
    "containers": Containers,
    "a property": ByProperty,
    "positions": Positions,
    "merging": Merging,
    "another function in eval": lambda: EvalSwitches().eval(),
    "disabled train": with_disabled_train,
    "fx graph": fx_graph,
    "columns of one matrix": columns_of_one_matrix,
    "instance norm, train": instance_norm,
    "instance norm, eval": lambda: instance_norm().eval(),
}


# What computes the same, where PyTorch cannot differentiate the module itself twice.
TWINS = {
    "real pairs": lambda: RealPairs(lambda w: torch.complex(w[..., 0], w[..., 1])),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dtype", ["float64", "float32, then to"])
def test_right_as_by_autograd(name, dtype):
    module, twin = seeded(RIGHT[name]), seeded(TWINS.get(name, RIGHT[name]))
    state = copy.deepcopy(dict(module.state_dict()))
    if dtype == "float64":
        risk = EmpiricalRisk(module, "cross_entropy", X, y, dtype="float64")
    else:
        risk = EmpiricalRisk(module, "cross_entropy", X, y)
        risk.linearize(risk.params()).hvp(risk.params())
        risk.gradient_variances(risk.params())
        risk = risk.to(dtype="float64")
    assert_right(risk, twin)
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), key
