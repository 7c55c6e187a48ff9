"""The traced path against dense float64 autograd, and which path runs when."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk, linearize

from ._cases import CASES, SINGLE, Apply, N, make_risk, mlp, oracle, problem

pytestmark = pytest.mark.filterwarnings("ignore:The loss does not depend")

QUANTITIES = ["hvp", "ggn", "jvp", "vjp", "directional_derivatives"]

# What no trace can follow: branches that depend on the data, and a loss whose
# derivative has no forward mode.
PLAIN = {"branching": set(QUANTITIES), "mlp, Huber": {"hvp"}}


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch):
    monkeypatch.setattr(linearize, "_WORTH_TRACING", 0)


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
    plain = {quantity for quantity in QUANTITIES if point.paths[quantity] != "traced"}
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
        assert point.paths[quantity] == "traced", point.paths


def test_a_mismatch_is_noticed_and_named(monkeypatch):
    """What a wrong trace would give does not get through the trial."""
    right = linearize.LINEAR_KERNELS["ggn"]

    def wrong(model, loss):
        kernel = right(model, loss)
        return lambda theta, v, *data: kernel(theta, v, *data) + 0.1 * v.flip(0)

    monkeypatch.setitem(linearize.LINEAR_KERNELS, "ggn", wrong)
    risk, theta = copy.deepcopy(make_risk("mlp")), problem("mlp").theta
    product = risk.linearize(theta).ggn(theta)
    close(product, oracle("mlp").gauss_newton @ theta, 1e-9)
    assert risk.paths["ggn"].startswith("plain: the traced product differs by")


def test_little_work_is_not_traced(monkeypatch):
    monkeypatch.setattr(linearize, "_WORTH_TRACING", 1 << 24)
    risk, theta = copy.deepcopy(make_risk("mlp")), problem("mlp").theta
    risk.linearize(theta).hvp(theta)
    assert risk.paths == {"hvp": "plain: too little work for a trace to pay"}


def test_memory_for_prepared_chunks_is_bounded(monkeypatch):
    risk, theta = copy.deepcopy(make_risk("mlp", 2, False)), problem("mlp").theta
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
        assert twin.paths == {"hvp": "traced"}


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
        close(got, factor * net.jvp(theta, theta), 1e-9)
    assert risk.paths["jvp"].startswith("plain: ")


def test_statistics_and_frozen_parameters_are_in_the_trace():
    module = nn.Sequential(mlp(3), nn.BatchNorm1d(3)).double().eval()
    module[0][2].requires_grad_(False)
    p = problem("mlp")
    module[1].running_mean.uniform_(-1, 1)
    risk = EmpiricalRisk(module, "cross_entropy", p.X, p.y)
    theta = risk.params()
    traced = risk.linearize(theta).hvp(theta)
    linearize._WORTH_TRACING, before = 1 << 60, linearize._WORTH_TRACING
    try:
        plain = copy.deepcopy(risk).linearize(theta).hvp(theta)
    finally:
        linearize._WORTH_TRACING = before
    close(traced, plain, 1e-9)
    assert risk.paths == {"hvp": "traced"}
