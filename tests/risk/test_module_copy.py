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
from torch.nn.utils import parametrizations, prune

from flatmin import EmpiricalRisk

from .. import oracles

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*is deprecated:FutureWarning",
    "ignore:.*torch.jit",
)

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
    """Return value, rows and Hessian at θ by autograd; the module is changed."""
    as_double(module)
    params = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        parts = theta.split([p.numel() for p in params])
        for p, part in zip(params, parts, strict=True):
            p.copy_(part.view(p.shape))

    def flat(value):
        found = torch.autograd.grad(
            value, params, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([g.reshape(-1) for g in found])

    X = X.to(torch.complex128) if X.is_complex() else X
    X = X.double() if X.is_floating_point() else X
    old_norm = mock.patch(
        "torch.nn.utils.weight_norm._weight_norm", oracles.weight_norm
    )
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
        self.down, self.up = (
            nn.Parameter(torch.randn(2, 4)),
            nn.Parameter(torch.zeros(5, 2)),
        )
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
        nn.Linear(4, 6),
        nn.Unflatten(1, (2, 3)),
        norm,
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(6, 3),
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


MOVED = ["old weight norm", "complex constants", "real pairs", "another to", "merging"]

# What computes the same, where PyTorch cannot differentiate the module itself twice.
TWINS = {
    "real pairs": lambda: RealPairs(lambda w: torch.complex(w[..., 0], w[..., 1])),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float64") for name in RIGHT),
        *((name, "float32, then to") for name in MOVED),
    ],
)
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


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize("mode", [True, False])
def test_instance_norm_of_images(affine, chunk_size, mode):
    """PyTorch 2.13 is wrong at H for one channels-last example."""

    def build():
        norm = nn.InstanceNorm2d(3, affine=affine, track_running_stats=True)
        net = [nn.Conv2d(2, 3, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)]
        return nn.Sequential(*net).train(mode)

    images = torch.randn(7, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    options = {"dtype": "float64", "chunk_size": chunk_size}
    risk = EmpiricalRisk(seeded(build), "cross_entropy", images, y, **options)
    assert_right(risk, seeded(build), images)


# -- modules that are refused ----------------------------------------------------------


class Cached(Net):
    """Computes its weight once in eval mode."""

    def __init__(self, grad=False):
        super().__init__()
        self.cache, self.grad = None, grad

    def forward(self, x):
        if self.cache is None:
            with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()):
                self.cache = self.first.weight.exp()
        return self.last(F.linear(x, self.cache).tanh())


class CachedProperty(Net):
    @functools.cached_property
    def weight(self):
        return self.first.weight.exp().detach()

    def forward(self, x):
        return self.last(F.linear(x, self.weight).tanh())


def used(module, grad):
    with torch.set_grad_enabled(grad):
        module(X)
    return module


class CachesInEval(Net):
    """eval() computes, train() forgets."""

    cache = None

    def train(self, mode=True):
        self.cache = None if mode else self.first.weight.detach().exp()
        return super().train(mode)

    def forward(self, x):
        weight = self.first.weight.exp() if self.cache is None else self.cache
        return self.last(F.linear(x, weight).tanh())


class Running(Net):
    """Statistics that are written and read in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def between(self, h):
        self.mean.lerp_(h.detach().mean(0), 0.1)
        return (h - self.mean).tanh()


class Counts(Net):
    """Becomes another function after some passes."""

    def __init__(self, count):
        super().__init__()
        if isinstance(count, torch.Tensor):
            self.register_buffer("count", count)
        else:
            self.count = count

    def between(self, h):
        self.count += 1
        return h.tanh() * (2 if self.count > 500 else 1)


class State(Net):
    """Goes on from where the last pass ended."""

    def __init__(self, detach):
        super().__init__()
        self.state, self.detach = torch.zeros(5), detach

    def between(self, h):
        h = (h + self.state.mean()).tanh()
        self.state = h.detach() if self.detach else h
        return h


class MadeOnce(Net):
    """Reads a tensor with a graph, or without, that was made of a parameter once."""

    def __init__(self, detach):
        super().__init__()
        weight = self.first.weight.detach() if detach else self.first.weight
        self.transposed = weight.T

    def forward(self, x):
        return self.last((x @ self.transposed).tanh() + self.first.bias)


class Normalises(Net):
    def forward(self, x):
        self.first.weight.data /= self.first.weight.data.norm()
        return super().forward(x)


class Replaces(Net):
    def forward(self, x):
        self.first.weight = nn.Parameter(self.first.weight.detach().clone())
        return super().forward(x)


class Freezes(Net):
    def forward(self, x):
        self.first.weight.requires_grad_(False)
        return super().forward(x)


def closes_over_itself():
    module = Net()
    module.between = lambda h: h.tanh() + module.first.bias
    return module


def hook_that_closes_over():
    module = Net()
    module.register_forward_hook(lambda _m, _i, out: out + module.last.bias)
    return module


def complex_parameter():
    module = Rotary()
    module.constant.requires_grad_(True)
    return module


def with_attribute(value):
    module = nn.Sequential(Net(), nn.Tanh())
    module[0].lock = value
    return module


def same_memory(part):
    module = Net()
    module.first.bias = nn.Parameter(part(module))
    return module


class CopiesNothing(Net):
    def __deepcopy__(self, memo):
        return self


def hooked_wrapper():
    module = nn.DataParallel(Net())
    module.register_forward_hook(_Double())
    return module


MEMORY = "function of θ and its input alone"
FOREIGN = r"reads the parameter '(first|last).bias' of the original"
LEAVES = "must leave the parameters as they are"

REFUSED = {
    "cached": (Cached, MEMORY),
    "cached with a graph": (lambda: Cached(True), MEMORY),
    "cached with a graph before": (lambda: used(Cached(True), True), MEMORY),
    "cached property": (CachedProperty, MEMORY),
    "cached by eval": (CachesInEval, MEMORY),
    "cached by eval before": (lambda: CachesInEval().eval(), MEMORY),
    "running statistics": (Running, "same output for the same input|buffers.*mean"),
    "counts": (lambda: Counts(0), r"counts its passes.*\(count\)"),
    "counts in a buffer": (lambda: Counts(torch.tensor(0)), r"counts.*\(count\)"),
    "a state": (lambda: State(True), "same output for the same input|" + MEMORY),
    "a state with a graph": (
        lambda: State(False),
        "same output for the same input|" + MEMORY,
    ),
    "made once": (lambda: MadeOnce(True), MEMORY),
    "made once, with a graph": (lambda: MadeOnce(False), MEMORY),
    "merged": (
        lambda: seeded(_merged),
        "train\\(\\) writes them.*call its train\\(\\) first",
    ),
    "normalises": (Normalises, LEAVES),
    "replaces": (Replaces, LEAVES),
    "freezes": (Freezes, LEAVES),
    "closes over itself": (closes_over_itself, FOREIGN),
    "a hook that closes over": (hook_that_closes_over, FOREIGN),
    "complex parameter": (complex_parameter, "complex parameter 'constant'.*freeze"),
    "same memory": (
        lambda: same_memory(lambda m: m.first.weight.data[:, 0]),
        "'first.weight' and 'first.bias', which share",
    ),
    "a lock": (
        lambda: with_attribute(threading.Lock()),
        r"attribute '0.lock' of type lock",
    ),
    "a generator": (
        lambda: with_attribute(iter_ for iter_ in ()),
        r"'0.lock' of type gen",
    ),
    "copies nothing": (CopiesNothing, "same parameters.*__deepcopy__"),
    "scripted": (
        lambda: torch.jit.script(nn.Linear(4, 3)),
        "written in Python.*TorchScript.*pass the nn.Module",
    ),
    "a scripted part": (
        lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 3)), nn.Tanh()),
        "'0', a RecursiveScriptModule, compiled",
    ),
    "graph": (lambda: torch.jit.trace(nn.Linear(4, 3), X), "TorchScript"),
    "a wrapper's hook": (hooked_wrapper, "DataParallel with forward hooks of its own"),
}


def _merged():
    module = Merging()
    nn.init.normal_(module.up)
    return module.eval()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name):
    build, words = REFUSED[name]
    module = build()
    with pytest.raises((TypeError, ValueError), match=words):
        EmpiricalRisk(module, "cross_entropy", X, y)


def test_the_way_out_of_a_complex_parameter_is_right():
    """Word for word as the message has it."""

    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))

        def forward(self, x):
            return (x.to(self.weight.dtype) @ self.weight.T).abs()

    class Real(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.w = nn.Parameter(torch.view_as_real(weight.detach()))

        def forward(self, x):
            weight = torch.view_as_complex(self.w)
            return (x.to(weight.dtype) @ weight.T).abs()

    module = seeded(Complex)
    risk = EmpiricalRisk(Real(module.weight), "cross_entropy", X, y, dtype="float64")
    as_double(module)
    loss = F.cross_entropy(module(X.double()), y)
    torch.testing.assert_close(risk.value(risk.params()), loss.detach())
    (slope,) = torch.autograd.grad(loss, module.weight)
    found = torch.view_as_complex(risk.gradient(risk.params()).view(3, 4, 2))
    torch.testing.assert_close(found, slope)


@pytest.mark.parametrize("where", ["transform", "loss"])
def test_parameters_of_the_original_are_not_reached(where):
    module = Net()

    def loss(outputs, y):
        return F.cross_entropy(outputs, y, reduction="none") + module.last.bias.norm()

    def transform(outputs):
        return outputs + module.last.bias

    options = {
        "loss": {"loss": loss},
        "transform": {"loss": "cross_entropy", "output_transform": transform},
    }
    with pytest.raises(ValueError, match=r"reads the parameter 'last.bias'"):
        EmpiricalRisk(module, X=X, y=y, **options[where])


# -- wrappers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda module: nn.DataParallel(torch.compile(module)),
    ],
    ids=["compiled", "parallel", "both"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_wrapper_is_left_out(wrap, inside):
    def build(wrap):
        module = Net()
        if not inside:
            return wrap(module)
        module.first = wrap(module.first)
        module.again = [module.first]
        return module

    module, twin = seeded(lambda: build(wrap)), seeded(lambda: build(lambda m: m))
    risk = EmpiricalRisk(module, "cross_entropy", X, y, dtype="float64")
    assert risk.layout.names == tuple(name for name, _ in Net().named_parameters())
    assert_right(risk, twin)


def test_compiled_in_place():
    module = seeded(Net)
    module.compile()
    module.first.compile()
    risk = EmpiricalRisk(module, "cross_entropy", X, y, dtype="float64")
    assert_right(risk, seeded(Net))


# -- copies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))]
)
@pytest.mark.parametrize("name", ["keeps activations", "old weight norm", "real pairs"])
def test_a_copied_risk_answers_for_itself(name, again):
    risk = EmpiricalRisk(seeded(RIGHT[name]), "cross_entropy", X, y, dtype="float64")
    theta = elsewhere(risk)
    risk.linearize(theta).hvp(theta)
    risk.gradient_variances(theta)
    twin = again(risk)
    assert_right(twin, seeded(TWINS.get(name, RIGHT[name])))
    twin.gradient(0 * theta)
    assert_right(risk, seeded(TWINS.get(name, RIGHT[name])))


def test_a_second_name_has_the_same_parameter():
    module = Net()
    module.again = {"weights": [module.first.weight], "part": (module.last,)}
    risk = EmpiricalRisk(module, "cross_entropy", X, y, dtype="float64")
    for each in (risk, copy.deepcopy(risk), risk.to(dtype="float32")):
        inside = each._model.module
        each.gradient(0 * each.params())
        assert inside.again["weights"][0] is inside.first.weight
        assert inside.again["part"][0] is inside.last
        assert not inside.again["weights"][0].any()


# -- inputs ----------------------------------------------------------------------------


class OwnEmbedding(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.table, self.read = nn.Parameter(torch.randn(9, 3)), read

    def forward(self, x):
        return self.read(x, self.table).sum(1)


class TwoBranches(nn.Module):
    """An Embedding of the first column, as an integer; numbers in the others."""

    def __init__(self):
        super().__init__()
        self.words, self.numbers = nn.Embedding(9, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.words(x[:, 0].long()) + self.numbers(x[:, 1:])


class Sum(nn.Module):
    def forward(self, x):
        return x.sum(1)


INDICES = torch.arange(28).view(7, 4) % 9


@pytest.mark.parametrize(
    ("build", "to_twin"),
    [
        (lambda: OwnEmbedding(F.embedding), torch.long),
        (lambda: OwnEmbedding(lambda x, table: table[x]), torch.long),
        (lambda: nn.Sequential(nn.Embedding(9, 3), nn.Tanh(), Sum()), torch.long),
        (Net, torch.float64),
        (TwoBranches, torch.float64),
    ],
    ids=["F.embedding", "by index", "Embedding", "numbers", "both"],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int16])
def test_integers_are_what_the_module_takes(build, to_twin, dtype):
    module, twin = seeded(build), seeded(build)
    given = INDICES.to(dtype)
    risk = EmpiricalRisk(module, "cross_entropy", given, y, dtype="float64")
    assert_right(risk, twin, INDICES.to(to_twin))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16])
def test_other_numbers_become_floating(dtype):
    given = (2 * X).to(dtype)
    risk = EmpiricalRisk(seeded(Net), "cross_entropy", given, y, dtype="float64")
    assert_right(risk, seeded(Net), given.double())


class OfComplex(Net):
    def forward(self, x):
        return super().forward(x.real) + x.imag[:, :3]


def test_complex_inputs_stay_complex():
    given = torch.complex(X, X.cos())
    risk = EmpiricalRisk(seeded(OfComplex), "cross_entropy", given, y, dtype="float64")
    assert_right(risk, seeded(OfComplex), given)
    given[2, 1] = torch.complex(torch.tensor(0.0), torch.tensor(torch.nan))
    with pytest.raises(ValueError, match="NaN or infinity"):
        EmpiricalRisk(seeded(OfComplex), "cross_entropy", given, y)
