"""What each quantity costs, in passes and products: a guard that no machine sways."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flatmin.curvature import hessian_eigenpairs
from flatmin.modules import LeNet
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk
from flatmin.risk.network.model import FlatModel
from flatmin.risk.products import graphs

N = 12
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def always_traced(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)


@pytest.fixture
def risk():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        X, y = torch.rand(N, 1, 28, 28), torch.randint(0, 10, (N,))
        return EmpiricalRisk(LeNet(), "cross_entropy", X, y)


@pytest.fixture
def passes(monkeypatch):
    """Forward passes of the network, and calls of autograd."""
    done = Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            done[name] += 1
            return function(*args, **kwargs)

        return call

    for name in ("__call__", "functional"):
        function = getattr(FlatModel, name)
        monkeypatch.setattr(FlatModel, name, counted("forward", function))
    grad = counted("backward", torch.autograd.grad)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    return done


def law_step(name):
    def step(risk, theta):
        law, rng = make_noise_law(name, batch_size=3), torch.Generator().manual_seed(0)
        state = law.refresh(risk, theta, rng)
        return lambda: law.noisy_gradient(risk, theta, state, rng)

    return step


def refreshed_step(name):
    def step(risk, theta):
        law, rng = make_noise_law(name, batch_size=3), torch.Generator().manual_seed(0)
        return lambda: law.refreshed_gradient(risk, theta, rng)

    return step


# What is asked at a θ where the same has been asked before.
COSTS = {
    "value": (lambda r, t: lambda: r.value(t), 1, 0),
    "gradient": (lambda r, t: lambda: r.gradient(t), 1, 1),
    "Tr(Σ) and diag(Σ)": (lambda r, t: lambda: r.gradient_variances(t), 1, 1),
    "squared norms": (lambda r, t: lambda: r.squared_norms(t), 1, 1),
    "four minibatches": (
        lambda r, t: lambda: r.batch_gradients(t, torch.arange(N).view(4, 3)),
        1,
        1,
    ),
    "gld_full": (law_step("gld_full"), 1, 1),
    "gld_fisher": (law_step("gld_fisher"), 1, 1),
    # Of the two backward passes one goes back to the outputs alone.
    "gld_ggn": (law_step("gld_ggn"), 1, 2),
    "gld_diagonal": (law_step("gld_diagonal"), 1, 1),
    # Noise from the sweep that gives the loss and the gradient.
    "gld_diagonal with its refresh": (refreshed_step("gld_diagonal"), 1, 1),
    "gld_dynamic with its refresh": (refreshed_step("gld_dynamic"), 1, 1),
    "Tr(G), one sweep": (
        lambda r, t: lambda: r.gauss_newton_traces(t, torch.Generator()),
        2,
        1,
    ),
    "sgd": (law_step("sgd"), 1, 1),
}


@pytest.mark.parametrize("name", COSTS)
def test_passes(name, risk, passes):
    make, forward, backward = COSTS[name]
    ask = make(risk, risk.params())
    ask()
    passes.clear()
    ask()
    assert (passes["forward"], passes["backward"]) == (forward, backward)


@pytest.mark.parametrize("name", COSTS)
def test_passes_over_a_subset_that_has_not_been_seen(name, risk, passes):
    make, forward, backward = COSTS[name]
    theta = risk.params()
    ask = make(risk, theta)
    ask()
    some = (torch.arange(N) + 5) % N  # as many examples as the questions ask for
    make(risk.subset(some), theta)()
    ask = make(risk.subset(some.flip(0)), theta)
    passes.clear()
    ask()
    assert (passes["forward"], passes["backward"]) == (forward, backward)


@pytest.mark.parametrize(
    ("quantity", "prepare", "use"),
    [
        # Forward and backward convolutions of two layers. A product with H takes J v
        # and the weights' gradient of the first, and of the second two of J v, of the
        # weights' and of the input's gradient.
        ("hvp", (2, 0), (3, 5)),
        ("ggn", (2, 0), (3, 2)),
        ("directional_derivatives", (2, 0), (3, 0)),
    ],
)
def test_convolutions_of_a_product(quantity, prepare, use, risk, passes):
    theta = risk.params()
    point = risk.linearize(theta)
    getattr(point, quantity)(theta)
    passes.clear()
    getattr(point, quantity)(theta)
    assert not passes, "a product at a prepared point runs no network"
    with Convolutions() as at_a_known_point:
        getattr(point, quantity)(theta)
    assert at_a_known_point.found() == use
    other = risk.linearize(theta + 1)
    with Convolutions() as at_another:
        getattr(other, quantity)(theta)
    both = tuple(map(sum, zip(prepare, use, strict=True)))
    assert at_another.found() == both


class Convolutions(TorchDispatchMode):
    """Counts convolutions, forward and backward."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))

    def found(self):
        backward = aten.convolution_backward.default
        return self.calls[aten.convolution.default], self.calls[backward]


def test_products_for_twenty_eigenpairs(risk):
    rng = torch.Generator().manual_seed(0)
    pairs = hessian_eigenpairs(risk, risk.params(), 20, which="LM", tol=1e-4, rng=rng)
    assert pairs.converged.all()
    assert pairs.n_matvecs <= 80


def test_what_is_tried_before_the_first_number(passes, monkeypatch):
    """Besides a traced shape's own trial: at most 16 examples, in two sizes.

    The construction alone runs two chunks, without a graph: what examples share may run
    out among many only.
    """
    sizes = Counter()
    run = FlatModel._run

    def counted(self, module, X):
        sizes[len(X)] += 1
        return run(self, module, X)

    monkeypatch.setattr(FlatModel, "_run", counted)
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 1 << 60)
    n = 200
    with torch.random.fork_rng():
        torch.manual_seed(0)
        X, y = torch.rand(n, 1, 28, 28), torch.randint(0, 10, (n,))
        risk = EmpiricalRisk(LeNet(), "cross_entropy", X, y)
    # Whether X fits, the same twice, with and without a graph, in two sizes and alone,
    # the gradient together, with each twice, and alone, and which parameters are used;
    # whether a fresh copy does the same, and what a pass reads and counts.
    # One example twice, in a crowd of copies; and a chunk, with some of it alone, and
    # five that are unlike the rest.
    # Whether θ hides a part of the network: outputs, and a gradient.
    crowds, hidden = Counter({1: 2 + 64 + 5, n: 1 + 1}), Counter({16: 1 + 1})
    expected = Counter({1: 1 + 16 + 16 + 1, 2: 1, 16: 2 + 2 + 2 + 6}) + crowds + hidden
    # In both layouts; what the loss counts; with parameters far away, and not so; a
    # gradient, and losses at a step to either side; outputs, to weigh them.
    expected += Counter({2: 2 + 1 + 3, 16: 1 + 2 + 1})
    assert sizes == expected
    assert passes["backward"] == 16 + 2 + 1 + 1 + 1
    theta = risk.params()

    def first(ask):
        sizes.clear(), passes.clear()
        ask()
        tried = dict(sizes), passes["backward"]
        sizes.clear(), passes.clear()
        ask()
        return tried[0], tried[1] - passes["backward"]

    # Rows alone, layer by layer together and half of them; whether θ hides a part; and
    # all examples, in another order, with two weights.
    tried, backward = first(lambda: risk.gradient_variances(theta))
    assert tried == {16: 1 + 1 + 1, 1: 16, 8: 1, n: 1 + 1}
    assert backward == 16 + 1 + 1 + 1 + 2
    # Outputs, J v by the pullback, and Jᵀu, together and alone; whether θ hides a part.
    tried, backward = first(lambda: risk.linearize(theta).jvp(theta))
    assert tried == {16: 1 + 2, 1: 1, n: 1}
    assert backward == 2 * 4 + 1
    # In float64: whether it can be had; H v for two directions, and two gradients, in
    # two sizes. (A call of autograd is counted twice where a function mode watches it.)
    tried, backward = first(lambda: risk.linearize(theta).hvp(theta))
    assert tried == {16: 1 + 1 + 2 + 2, 1: 1 + 2, n: 1}
    assert backward == 1 + 2 * (2 + 2 + 2) + 1
