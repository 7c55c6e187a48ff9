"""The table of identities: what holds is said to hold, what is wrong shows."""

import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import flatmin
from flatmin.modules import LeNet
from flatmin.risk import EmpiricalRisk, identities
from flatmin.risk.example_sums.sums_by_layer import SumsByLayer
from flatmin.risk.products import graphs, product_ways, ways

from ._cases import problem
from .test_second_derivatives import ThroughNumPy, data, make

IDENTITIES = 22


@pytest.fixture
def few():
    """A small network whose audit has no reason to fail."""
    return problem("mlp").risk()


@pytest.mark.parametrize("name", ["mlp", "LSTM", "transformer", "embedding"])
def test_what_is_right_holds(name):
    report = problem(name).risk().audit(problem(name).theta)
    assert report.fails == ()
    assert len(report.checks) == IDENTITIES
    refused = {check.identity for check in report.checks if check.verdict == "refused"}
    assert refused <= {f"{q} of the graph = that of the reference" for q in PRODUCTS}
    assert report.dtype == "float64"
    assert report.gradients > 10


PRODUCTS = ("H v", "G v", "J v", "Jᵀu", "gᵢᵀv")


def test_the_table():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        X, y = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
        risk = EmpiricalRisk(LeNet(), "cross_entropy", X, y)
    report = risk.audit()
    lines = str(report).splitlines()
    assert lines[0] == (
        "LeNet, loss cross_entropy: D = 11,330, N = 20, float32 on cpu, chunks of 20"
    )
    assert lines[1] == "identities on 16 examples in float64:"
    # ReLU and the maxima of the LeNet have kinks, which are no fault.
    assert report.fails == ()
    verdicts = [check.verdict for check in report.checks]
    assert verdicts.count("holds") >= IDENTITIES - 2
    assert set(verdicts) <= {"holds", "kink"}
    assert any(line.split()[:2] == ["diag", "Σ"] for line in lines)
    assert "by layer" in str(report)
    assert lines[-1].startswith("python ")
    assert f"flatmin {flatmin.__version__}" in lines[-1]
    assert repr(report) == str(report) == str(pickle.loads(pickle.dumps(report)))
    costs = {cost.quantity: cost.gradients for cost in report.costs}
    assert costs["∇L"] > 0


def test_what_is_refused_is_told():
    risk = EmpiricalRisk(make(ThroughNumPy.apply), "cross_entropy", *data())
    report = risk.audit()
    assert report.fails == ()
    told = {check.identity: check for check in report.checks}
    check = told["H v = (∇L(θ + hv) - ∇L(θ - hv)) / 2h"]
    assert check.verdict == "refused"
    assert "second derivatives" in check.note
    assert told["uᵀ(J v) = vᵀ(Jᵀu)"].verdict == "holds"
    assert any(
        cost.quantity == "H v" and cost.path.startswith("refused")
        for cost in report.costs
    )


def failing(report):
    return {check.identity for check in report.fails}


# A fault in one implementation each, and the identities that show it.
def break_moments(monkeypatch):
    right = SumsByLayer.moments

    def wrong(self):
        moments = right(self)
        return moments._replace(centred_squares=1.01 * moments.centred_squares)

    monkeypatch.setattr(SumsByLayer, "moments", wrong)
    # The trial would not take it.
    monkeypatch.setattr("flatmin.risk.example_sums.sums.tolerance", lambda *_: 1.0)
    return {"diag Σ = that of the gᵢ alone"}


def break_hessian(monkeypatch):
    right = ways.HESSIANS["double backward"]
    monkeypatch.setitem(
        ways.HESSIANS,
        "double backward",
        lambda point, v: right(point, v) * torch.linspace(1, 1.1, len(v)),
    )
    monkeypatch.setattr(product_ways.ProductWays, "_hessian_off", lambda *_: 0.0)
    return {
        "aᵀHb = bᵀHa",
        "H v = (∇L(θ + hv) - ∇L(θ - hv)) / 2h",
        "H v of the graph = that of the reference",
    }


def break_jacobian(monkeypatch):
    right = ways.JACOBIANS["pullback"]
    monkeypatch.setitem(
        ways.JACOBIANS,
        "pullback",
        lambda sums, point, v: 1.01 * right(sums, point, v),
    )
    monkeypatch.setattr(product_ways.ProductWays, "_off", lambda *_: 0.0)
    return {
        "uᵀ(J v) = vᵀ(Jᵀu)",
        "gᵢᵀv = that of the gᵢ alone",
        *(f"{q} of the graph = that of the reference" for q in ("G v", "J v", "gᵢᵀv")),
    }


@pytest.mark.parametrize("fault", [break_moments, break_hessian, break_jacobian])
def test_a_fault_shows(fault, monkeypatch):
    expected = fault(monkeypatch)
    monkeypatch.setattr(graphs, "tolerance", lambda *_: 1.0)
    report = problem("mlp").risk().audit(problem("mlp").theta)
    assert expected <= failing(report), str(report)
    assert "fails" in str(report)


def test_a_gradient_that_is_none_of_the_value_is_told():
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.tanh()

        @staticmethod
        def backward(ctx, g):
            return g

    with pytest.warns(UserWarning, match="is not the derivative of L"):
        report = EmpiricalRisk(make(Backward.apply), "cross_entropy", *data()).audit()
    assert "vᵀ∇L = (L(θ + hv) - L(θ - hv)) / 2h" in failing(report)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_module_of_one_dtype_is_audited_in_its_own(scale):
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            # The curvature of the loss at small logits is lost among float32's slopes.
            return scale * self.linear(x) @ torch.eye(3)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        risk = EmpiricalRisk(
            Single(), "cross_entropy", torch.randn(9, 4), torch.arange(9) % 3
        )
    report = risk.audit()
    assert report.dtype == "float32"
    assert report.fails == ()


def test_show_versions(capsys):
    flatmin.show_versions()
    printed = capsys.readouterr().out
    for name in ("python", "torch", "threads"):
        assert f"{name}: " in printed


def test_large_outputs_are_not_taken_apart(monkeypatch):
    monkeypatch.setattr(identities, "_MOST_OUTPUTS", 2)
    report = problem("mlp").risk().audit()
    (check,) = [c for c in report.checks if c.identity.startswith("Tr(Gᵢ)")]
    assert (check.verdict, check.note) == (
        "refused",
        "not taken apart: an output has 3 numbers",
    )


class WrongRelu(torch.autograd.Function):
    """ReLU, whose gradient is off by a per cent."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 1.01 * g * (x > 0)


@pytest.mark.parametrize("function", [torch.relu, WrongRelu.apply])
def test_a_kink_at_theta_itself_is_no_fault_and_hides_none(function):
    # Black pixels and biases of zero: a difference is the mean of both sides at any
    # step, and PyTorch's derivative is that of one.
    module = make(function)
    torch.nn.init.zeros_(module.first.bias)
    X, y = data()
    X[:4] = 0
    is_right = function is torch.relu
    told = pytest.warns(UserWarning, match="is not the derivative of L")
    with nullcontext() if is_right else told:
        report = EmpiricalRisk(module, "cross_entropy", X, y).audit()
    verdicts = {check.identity: check.verdict for check in report.checks}
    slope = verdicts["vᵀ∇L = (L(θ + hv) - L(θ - hv)) / 2h"]
    assert slope == ("kink" if is_right else "fails")
    assert (report.fails == ()) == is_right
    assert ("kink  not differentiable here" in str(report)) == is_right
