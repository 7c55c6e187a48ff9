"""The traced path against dense float64 autograd, and which path runs when."""

import copy

import pytest
import torch

from flatmin.risk import linearize

from ._cases import CASES, SINGLE, N, make_risk, oracle, problem

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
