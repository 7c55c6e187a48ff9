"""The traced path against dense float64 autograd, and which path runs when."""

import copy
import dataclasses
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs, linearize
from flatmin.risk.products.double_backward import DoubleBackward

from .. import oracles
from ._cases import CASES, SINGLE, Apply, N, make_risk, mlp, oracle, problem

pytestmark = pytest.mark.filterwarnings("ignore:The loss does not depend")

QUANTITIES = ["hvp", "ggn", "jvp", "vjp", "directional_derivatives"]

# What no trace can follow: branches that depend on the data, and a loss whose
# derivative has no forward mode.
PLAIN = {"branching": set(QUANTITIES), "mlp, Huber": {"hvp"}}


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)


def direction_for(quantity, risk, dtype=torch.float64):
    shape = (N, *risk.output_shape) if quantity == "vjp" else (risk.n_params,)
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shape, generator=generator, dtype=dtype)


def expected(quantity, dense, direction):
    if quantity == "hvp":
        return dense.hessian @ direction
    if quantity == "ggn":
        return dense.gauss_newton @ direction
    if quantity == "jvp":
        return (dense.jacobians @ direction).view(dense.outputs.shape)
    if quantity == "vjp":
        return dense.jacobians.flatten(0, 1).mT @ direction.flatten()
    return dense.gradients @ direction


def close(actual, wanted, rtol):
    assert actual.shape == wanted.shape
    error = torch.linalg.vector_norm(actual.double() - wanted)
    assert error <= rtol * torch.linalg.vector_norm(wanted) + 1e-13, float(error)


@pytest.mark.parametrize(
    ("name", "chunk_size", "weighted"),
    [*((name, 3, True) for name in CASES), *((name, None, False) for name in SINGLE)],
)
def test_every_product(name, chunk_size, weighted):
    risk = copy.deepcopy(make_risk(name, chunk_size, weighted))
    theta, dense = problem(name).theta, oracle(name, weighted=weighted)
    # A trace made elsewhere serves here.
    risk.linearize(theta.flip(0)).hvp(theta)
    point = risk.linearize(theta)
    for quantity in QUANTITIES:
        direction = direction_for(quantity, risk)
        for _ in range(2):  # prepared, and prepared before
            product = getattr(point, quantity)(direction)
            close(product, expected(quantity, dense, direction), 1e-9)
    plain = {quantity for quantity in QUANTITIES if point.paths[quantity] != "graph"}
    assert plain == PLAIN.get(name, set()), point.paths


@pytest.mark.parametrize("name", SINGLE)
def test_single_precision(name):
    risk, dense = problem(name, torch.float32).risk(), oracle(name)
    point = risk.linearize(problem(name).theta.float())
    for quantity in QUANTITIES:
        direction = direction_for(quantity, risk, torch.float32)
        product = getattr(point, quantity)(direction)
        assert product.dtype == torch.float32
        close(product, expected(quantity, dense, direction.double()), 1e-5)
        assert point.paths[quantity] == "graph", point.paths


def test_a_mismatch_is_noticed_and_named(monkeypatch):
    """What a wrong trace would give does not get through the trial."""
    right = graphs.LINEAR_KERNELS["ggn"]

    def wrong(model, loss, theta, v, *data):
        return right(model, loss, theta, v, *data) + 0.1 * v.flip(0)

    monkeypatch.setitem(graphs.LINEAR_KERNELS, "ggn", wrong)
    risk, theta = copy.deepcopy(make_risk("mlp")), problem("mlp").theta
    product = risk.linearize(theta).ggn(theta)
    close(product, oracle("mlp").gauss_newton @ theta, 1e-9)
    assert risk.paths["ggn"].startswith("reference: the product by a graph is off by")


@pytest.mark.parametrize("weights", [None, torch.arange(1.0, 6)])
def test_a_trial_prepares_for_the_first_product(weights, monkeypatch):
    """Where it takes the chunk as it is, that is without weights."""
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    X, y = torch.randn(5, 4).double(), torch.arange(5) % 3
    risk = EmpiricalRisk(mlp().double(), "cross_entropy", X, y, sample_weight=weights)
    theta, prepared = risk.params(), []
    make = graphs.two_stage_graph

    def counted(*args):
        graph = make(*args)

        def prepare(*args):
            prepared.append(args)
            return graph.prepare(*args)

        return dataclasses.replace(graph, prepare=prepare)

    monkeypatch.setattr(graphs, "two_stage_graph", counted)
    dense = oracles.dense(
        mlp().double(), oracles.cross_entropy, X, y, theta, weights=weights
    )
    for at in (theta, 2 * theta):
        point = risk.linearize(at)
        for _ in range(2):
            point.hvp(theta)
    assert len(prepared) == (2 if weights is None else 3)
    close(risk.linearize(theta).hvp(theta), dense.hessian @ theta, 1e-9)


def test_a_trial_that_ran_out_of_memory_is_made_again(monkeypatch):
    p = problem("mlp")
    risk, v = p.risk(), torch.ones_like(p.theta)
    found = p.risk().linearize(p.theta).hvp(v)

    def fail(*_args):
        raise torch.OutOfMemoryError("too much")

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "difference", fail)
        with pytest.raises(torch.OutOfMemoryError):
            risk.linearize(p.theta).hvp(v)
    assert risk.paths == {}
    assert torch.equal(risk.linearize(p.theta).hvp(v), found)
    assert risk.paths == {"hvp": "graph"}


def test_little_work_is_not_traced(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 1 << 24)
    risk, theta = copy.deepcopy(make_risk("mlp")), problem("mlp").theta
    risk.linearize(theta).hvp(theta)
    assert risk.paths == {"hvp": "reference: too little work for a graph to pay"}


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_few_products_take_no_graph_whatever_came_before(quantity):
    risk, theta = copy.deepcopy(make_risk("mlp")), problem("mlp").theta
    direction = direction_for(quantity, risk)

    def ask(n_products):
        point = risk.linearize(theta, n_products=n_products)
        return getattr(point, quantity)(direction), point.paths[quantity]

    few, path = ask(1)
    close(few, expected(quantity, oracle("mlp"), direction), 1e-9)
    assert path == "reference: few products do not repay a graph"
    assert risk.paths == {}
    for many in (None, 20):
        product, path = ask(many)
        assert path == risk.paths[quantity] == "graph"
        close(product, few, 1e-9)
    again, path = ask(1)
    assert torch.equal(again, few)
    assert path.startswith("reference: few")


def test_how_many_products_repay_a_graph():
    # A graph is made on one chunk; only the gradient of a single chunk keeps its own.
    least = {1: 13, 2: 3, 3: 2, 10: 1}
    for n_chunks, n in least.items():
        assert graphs.repays(n, n_chunks)
        assert not graphs.repays(n - 1, n_chunks)
    risk = make_risk("mlp", 3)
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises((TypeError, ValueError), match="n_products must be"):
            risk.linearize(risk.params(), n_products=wrong)


def test_memory_for_prepared_chunks_is_bounded(monkeypatch):
    risk, theta = copy.deepcopy(make_risk("mlp", 2, False)), problem("mlp").theta
    risk.value(theta)  # the first pass is over copies, which count less than all of X
    everything = risk.linearize(theta)
    expected = everything.hvp(theta)
    assert len(everything._kept) == 4
    monkeypatch.setattr(linearize, "_KEPT_BYTES", everything._kept_bytes // 2)
    some = risk.linearize(theta)
    for _ in range(2):
        assert torch.equal(some.hvp(theta), expected)
        assert len(some._kept) == 2


def test_copies_and_pickles_trace_anew():
    risk, theta = copy.deepcopy(make_risk("mlp")), problem("mlp").theta
    product = risk.linearize(theta).hvp(theta)
    for twin in (copy.deepcopy(risk), pickle.loads(pickle.dumps(risk))):
        assert twin.paths == {}
        twin.set_params(0 * theta)
        assert torch.equal(twin.linearize(theta).hvp(theta), product)
        assert twin.paths == {"hvp": "graph"}


def test_threads_may_trace_at_the_same_time():
    risks = [copy.deepcopy(make_risk("mlp")) for _ in range(4)]
    theta, products = problem("mlp").theta, [None] * 4
    before = torch.nn.Module.__call__

    def work(i):
        products[i] = risks[i].linearize(theta).hvp(theta)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for product in products:
        close(product, oracle("mlp").hessian @ theta, 1e-9)
    assert torch.nn.Module.__call__ is before


def test_a_branch_on_the_parameters_takes_the_plain_path():
    def forward(parts, X):
        return parts["net"](X) * (2 if parts["net"][0].weight.sum() > 0 else 3)

    p = problem("mlp")
    module = Apply(forward, net=copy.deepcopy(p.module))
    risk, net = EmpiricalRisk(module, "cross_entropy", p.X, p.y), make_risk("mlp")
    for sign, factor in ((1, 2), (-1, 3)):
        theta = sign * p.theta.abs()
        got = risk.linearize(theta).jvp(theta)
        close(got, factor * net.linearize(theta).jvp(theta), 1e-9)
    assert risk.paths["jvp"].startswith("reference: ")


@pytest.mark.parametrize("worth", [0, 1 << 60])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_bad_direction_is_refused_and_changes_no_path(quantity, worth, monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", worth)
    risk, theta = copy.deepcopy(make_risk("mlp", 3)), problem("mlp").theta
    product = getattr(risk.linearize(theta), quantity)
    right = direction_for(quantity, risk)
    for wrong in (right[:-1], right[..., None], torch.cat([right, right]), [1.0]):
        with pytest.raises(
            (TypeError, ValueError), match=r"must (be a Tensor|have shape)"
        ):
            product(wrong)
    with pytest.raises(FloatingPointError, match=r"[uv] must be finite"):
        product(right * float("nan"))
    close(product(right), expected(quantity, oracle("mlp"), right), 1e-9)
    assert (risk.paths[quantity] == "graph") == (worth == 0)


def _added(parts, X, rows):
    if len(rows) == 0:
        return parts["net"](X)
    return parts["net"](X).index_add(0, rows, parts["expert"](X[rows]))


# Python's branches on shapes, which no trace sees, after what depends on numbers.
def _nonzero(parts, X):
    return _added(parts, X, (X[:, 0] < 0).nonzero().flatten())


def _mask(parts, X):
    rows = torch.arange(len(X))
    return _added(parts, X, rows[X[:, 0] < 0])


def _only_the_count(parts, X):
    negative = X[:, 0] < 0
    outputs = parts["net"](X)
    if len(torch.bincount(negative.int())) > 1:
        outputs = outputs + negative[:, None] * parts["expert"](X)
    return outputs


@pytest.mark.parametrize("forward", [_nonzero, _mask, _only_the_count])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_an_expert_that_the_first_chunk_does_not_ask(forward, quantity):
    p = problem("mlp")
    net, expert = copy.deepcopy(p.module), copy.deepcopy(p.module)
    X = p.X.clone()
    X[:, 0] = torch.arange(N) - 3.5
    X = X.flip(0)  # negative numbers come last
    module = Apply(forward, net=net, expert=expert)
    risk = EmpiricalRisk(module, "cross_entropy", X, p.y, chunk_size=2)
    theta = risk.params()
    direction = direction_for(quantity, risk)
    dense = oracles.dense(module, oracles.cross_entropy, X, p.y, theta)
    close(
        getattr(risk.linearize(theta), quantity)(direction),
        expected(quantity, dense, direction),
        1e-9,
    )
    assert "shapes that depend on numbers" in risk.paths[quantity]


def test_statistics_and_frozen_parameters_are_in_the_trace():
    module = nn.Sequential(mlp(3), nn.BatchNorm1d(3)).double().eval()
    module[0][2].requires_grad_(False)
    p = problem("mlp")
    module[1].running_mean.uniform_(-1, 1)
    risk = EmpiricalRisk(module, "cross_entropy", p.X, p.y)
    theta = risk.params()
    traced = risk.linearize(theta).hvp(theta)
    graphs._WORTH_A_GRAPH, before = 1 << 60, graphs._WORTH_A_GRAPH
    try:
        plain = copy.deepcopy(risk).linearize(theta).hvp(theta)
    finally:
        graphs._WORTH_A_GRAPH = before
    close(traced, plain, 1e-9)
    assert risk.paths == {"hvp": "graph"}


def two_layers(forward):
    return Apply(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3)).double()


def without_gradient(parts, X):
    with torch.no_grad():
        scale = parts["a"].weight.norm().clamp(min=2.0)
    return parts["b"]((parts["a"](X) / scale).tanh())


def seeded_features(parts, X):
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, generator=rng, dtype=X.dtype)
    return parts["b"](X + parts["a"](X).tanh() * noise[0] + noise[1])


def checkpointed(parts, X):
    hidden = checkpoint(lambda Z: parts["a"](Z).tanh(), X, use_reentrant=False)
    return parts["b"](hidden)


def uncheckpointed(parts, X):
    """The same, for the oracle, which is wrong with a checkpoint."""
    return parts["b"](parts["a"](X).tanh())


def some_rows(parts, X):
    chosen = X[:, 0] > 0
    hidden = torch.zeros(len(X), 4, dtype=X.dtype)
    return parts["b"](hidden.index_put((chosen,), parts["a"](X[chosen]).tanh()))


def own_padding(parts, X):
    words = F.embedding(X[:, :2].long() % 4, parts["a"].weight, padding_idx=0)
    return parts["b"](words.sum(1).tanh())


@pytest.mark.parametrize("worth", [0, 1 << 60], ids=["graph", "reference"])
@pytest.mark.parametrize(
    "forward",
    [without_gradient, seeded_features, checkpointed, some_rows, own_padding],
)
def test_what_a_trial_on_one_chunk_could_miss(forward, worth, monkeypatch):
    """The first chunk weighs nothing or is special, and θ moves on."""
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", worth)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = two_layers(forward)
        X, y = 3 * torch.randn(7, 4).double(), torch.randint(0, 3, (7,))
    X[:3] = X[:3].abs() + 1
    weights = torch.tensor([0, 0, 0, 1, 1, 2, 1])
    risk = EmpiricalRisk(
        module, "cross_entropy", X, y, chunk_size=3, sample_weight=weights
    )
    if forward is checkpointed:
        module.function = uncheckpointed
    first, before = risk.params(), torch.get_rng_state()
    for theta in (first, 3 * first, -first):
        dense = oracles.dense(
            module, oracles.cross_entropy, X, y, theta, weights=weights
        )
        point = risk.linearize(theta)
        for quantity in QUANTITIES:
            shape = torch.Size((7, 3)) if quantity == "vjp" else theta.shape
            direction = torch.linspace(-1, 1, shape.numel()).double().view(shape)
            risk.value(first + 1)  # the prepared point stays where it is
            product = getattr(point, quantity)(direction)
            close(product, expected(quantity, dense, direction), 1e-9)
    assert torch.equal(torch.get_rng_state(), before)


def test_padding_of_an_embedding_that_is_the_output_layer_too():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 6, bias=False)
            self.words = nn.Embedding(6, 3, padding_idx=0)
            self.out.weight = self.words.weight

        def forward(self, X):
            return self.out(self.words(X).tanh().mean(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Tied().double()
        X, y = torch.randint(1, 6, (7, 5)), torch.randint(0, 6, (7,))
    X[3:, 2:] = 0
    risk = EmpiricalRisk(module, "cross_entropy", X, y, chunk_size=3)
    theta = risk.params()
    dense = oracles.dense(module, oracles.cross_entropy, X, y, theta)
    for quantity in ("hvp", "ggn", "directional_derivatives"):
        product = getattr(risk.linearize(theta), quantity)(theta)
        close(product, expected(quantity, dense, theta), 1e-9)
        assert risk.paths[quantity] == "graph"


def test_examples_that_share_their_memory():
    series = torch.randn(13, dtype=torch.float64)
    X, y = series.unfold(0, 4, 1)[:7], torch.arange(7) % 3
    own, shared = (
        EmpiricalRisk(mlp().double(), "cross_entropy", given, y, chunk_size=3)
        for given in (X.clone(), X)
    )
    theta = own.params()
    for quantity in ("hvp", "ggn", "jvp"):
        got = getattr(shared.linearize(theta), quantity)(theta)
        close(got, getattr(own.linearize(theta), quantity)(theta), 1e-12)
    assert torch.equal(X, series.unfold(0, 4, 1)[:7])


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_chunk_of_weight_zero_hides_no_wrong_graph(quantity, monkeypatch):
    kernel = graphs.LINEAR_KERNELS[quantity]
    monkeypatch.setitem(
        graphs.LINEAR_KERNELS, quantity, lambda *args: 2 * kernel(*args)
    )
    p, weights = problem("mlp"), torch.ones(N)
    weights[:3] = 0
    risk = EmpiricalRisk(
        p.module, "cross_entropy", p.X, p.y, chunk_size=3, sample_weight=weights
    )
    theta = risk.params()
    dense = oracles.dense(
        p.module, oracles.cross_entropy, p.X, p.y, theta, weights=weights
    )
    direction = direction_for(quantity, risk)
    close(
        getattr(risk.linearize(theta), quantity)(direction),
        expected(quantity, dense, direction),
        1e-9,
    )
    reason = "reference: the product by a graph is off by 1.0e+00"
    assert risk.paths[quantity].startswith(reason)


def test_one_way_to_a_product_holds_memory_at_a_time(monkeypatch):
    """What the graph is tried against is let go before the graph is made."""
    alive, make = weakref.WeakSet(), graphs.two_stage_graph
    init = DoubleBackward.__init__

    def noted(self, *args):
        init(self, *args)
        alive.add(self)

    def counted(*args):
        assert len(alive) == 0
        return make(*args)

    monkeypatch.setattr(DoubleBackward, "__init__", noted)
    monkeypatch.setattr(graphs, "two_stage_graph", counted)
    risk, theta = copy.deepcopy(make_risk("mlp")), problem("mlp").theta
    point = risk.linearize(theta)
    for quantity in QUANTITIES:
        getattr(point, quantity)(direction_for(quantity, risk))
        assert risk.paths[quantity] == "graph"
