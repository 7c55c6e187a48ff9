"""Products by compiled graphs: right, or left out with the reason."""

import copy
import pickle
import shutil

import pytest
import torch
from torch import nn

from flatmin import CurvatureAnalyzer, FlatnessMonitor, SharpnessScorer
from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

from ..threads import race
from ._cases import oracle, problem

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler on a CPU",
)


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)


@pytest.fixture
def compilations(monkeypatch):
    """Count compilations, which hand the function on as it is."""
    seen = []

    def compile(function, **options):
        seen.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    return seen


def make_risk(name="mlp", /, **options):
    return problem(name).risk(**{"compile": True, **options})


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@needs_compiler
def test_a_compiled_product_is_right():
    """Of ragged chunks, with columns of a matrix, in any mode; compiled only once."""
    risk, dense = make_risk(chunk_size=3), oracle("mlp")
    point = risk.linearize(problem("mlp").theta)
    V = torch.randn(risk.n_params, 3, dtype=torch.float64)
    found = torch.stack([point.hvp(v) for v in V.T], 1)
    assert point.paths == {"hvp": "graph, compiled"}
    close(found, dense.hessian @ V)
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    with torch.no_grad():
        close(point.hvp(V[:, 0].contiguous()), found[:, 0])
    elsewhere = -problem("mlp").theta
    plain = risk.to(compile=False).linearize(elsewhere)
    close(risk.linearize(elsewhere).hvp(V[:, 0]), plain.hvp(V[:, 0]))
    # Two threads wait for each other.
    calls = [{str(i): lambda i=i: point.hvp(V[:, i])} for i in range(2)]
    right, faults = race(calls, rounds=5)
    assert not faults
    assert right == 10
    assert counters["unique_graphs"] == before


def test_each_product_is_compiled_once(compilations):
    risk = make_risk(chunk_size=3)
    point, v = risk.linearize(problem("mlp").theta), torch.ones(risk.n_params).double()
    for _ in range(2):
        point.hvp(v), point.ggn(v)
    assert set(point.paths.values()) == {"graph, compiled"}
    assert compilations == 2 * [{"fullgraph": True, "dynamic": False}]
    dense = oracle("mlp")
    close(point.hvp(v), dense.hessian @ v)
    close(point.ggn(v), dense.gauss_newton @ v)


def test_a_block_is_compiled(compilations):
    risk = make_risk()
    point = risk.linearize(problem("mlp").theta, select=risk.layout.names[0])
    d = len(point.theta)
    v = torch.ones(d, dtype=torch.float64)
    close(point.hvp(v), oracle("mlp").hessian[:d, :d] @ v)
    assert len(compilations) == 1


@pytest.mark.parametrize("factor", [1 + 1e-6, float("nan")])
def test_a_wrong_compilation_is_not_taken(monkeypatch, factor):
    monkeypatch.setattr(
        torch, "compile", lambda use, **_: lambda *kept: use(*kept) * factor
    )
    risk = make_risk()
    v = torch.ones(risk.n_params).double()
    close(risk.linearize(problem("mlp").theta).hvp(v), oracle("mlp").hessian @ v)
    assert "graph, not compiled: the compiled product is off by" in risk.paths["hvp"]


def test_without_a_compiler_the_reason_is_told(monkeypatch):
    def compile(use, **_):
        def fail(*_):
            raise RuntimeError("No working C++ compiler found. More.")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    risk = make_risk()
    v = torch.ones(risk.n_params).double()
    for _ in range(2):
        found = risk.linearize(problem("mlp").theta).hvp(v)
        close(found, oracle("mlp").hessian @ v)
    assert risk.paths["hvp"] == (
        "graph, not compiled: RuntimeError: No working C++ compiler found"
    )


def test_a_module_that_is_updated_is_compared_again(compilations):
    module, *rest = (p := problem("mlp")).module, p.case.loss, p.X, p.y
    risk = EmpiricalRisk(module, *rest, compile=True)
    v = torch.ones(risk.n_params).double()
    risk.linearize(problem("mlp").theta).hvp(v)
    changed = copy.deepcopy(module)
    with torch.no_grad():
        next(changed.parameters()).mul_(2)
    risk.update_from(changed)
    theta = risk.params()
    close(
        risk.linearize(theta).hvp(v),
        EmpiricalRisk(changed, *rest).linearize(theta).hvp(v),
    )
    assert risk.paths["hvp"] == "graph, compiled"
    assert len(compilations) == 1


def test_copies_compile_too(compilations):
    risk = make_risk()
    v = torch.ones(risk.n_params)
    for twin in (
        pickle.loads(pickle.dumps(risk)),
        copy.deepcopy(risk),
        risk.to(dtype="float32"),
        risk.with_module(nn.Sequential(nn.Linear(4, 3)).double()),
    ):
        before = len(compilations)
        direction = torch.ones(twin.n_params, dtype=twin.dtype)
        twin.linearize(twin.params()).hvp(direction)
        assert len(compilations) == before + 1
    assert risk.to(compile=True) is risk
    plain = risk.to(compile=False)
    before = len(compilations)
    plain.linearize(plain.params()).hvp(v.double())
    assert plain.paths["hvp"] == "graph"
    assert len(compilations) == before


def test_the_analyzers_hand_it_on(compilations):
    net, X, y = nn.Linear(3, 1), torch.randn(40, 3), torch.randn(40)
    CurvatureAnalyzer(net, loss="squared_error", compile=True).fit(X, y).matvec(
        torch.ones(4)
    )
    assert len(compilations) == 1
    scorer = SharpnessScorer(
        net, loss="squared_error", measure="max_eigenvalue", compile=True
    )
    scorer.fit(X, y)
    assert len(compilations) == 2
    monitor = FlatnessMonitor(
        *(X, y),
        loss="squared_error",
        quantities=["max_eigenvalue"],
        budget=1000,
        compile=True,
    )
    monitor(net, step=0)
    assert len(compilations) > 2


def test_compile_is_a_flag():
    for wrong in (1, "yes", None):
        with pytest.raises(TypeError, match="compile must be True or False"):
            make_risk(compile=wrong)
    with pytest.raises(TypeError, match="compile must be True or False"):
        make_risk().to(compile="yes")
    with pytest.raises(TypeError, match="compile must be True or False"):
        FlatnessMonitor([[1.0]], [1.0], loss="squared_error", compile="yes")
