"""A risk is freed when its last name goes, without a garbage collection."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from flatmin import (
    CurvatureAnalyzer,
    NoiseCovarianceAnalyzer,
    NoisyDiffusionClassifier,
    curvature,
)
from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

N = 12


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)
        self.function = function

    def forward(self, X):
        return self.last(self.function(self.first(X)))


def branch(h):
    return h.tanh() if h.sum() > 1e9 else h.sigmoid()


def quantile(h):
    return h * h.quantile(0.3, dim=1, keepdim=True)


def data():
    return torch.randn(N, 3), torch.arange(N) % 3


def make(function=torch.tanh, examples=None, **options):
    examples = examples or data()
    return EmpiricalRisk(Apply(function), "cross_entropy", *examples, **options)


def ask(risk, *left_out):
    """Ask for everything; return what holds the risk."""
    theta, v = risk.params(), torch.randn(risk.n_params)
    point = risk.linearize(theta)
    calls = {
        "gradient": lambda: risk.gradient(theta),
        "hvp": lambda: point.hvp(v),
        "ggn": lambda: point.ggn(v),
        "vjp": lambda: point.vjp(torch.randn(N, 3)),
        "directional": lambda: point.directional_derivatives(v),
        "norms": lambda: risk.squared_norms(theta),
        "rows": lambda: list(risk.per_example_gradients(theta)),
        "hessians": lambda: risk.squared_hessian_product(theta, v),
        "trace's gradient": lambda: risk.covariance_trace_gradient(theta),
    }
    for name, call in calls.items():
        if name not in left_out:
            call()
    return [risk, point, risk.subset(torch.arange(3))]


def of_a_risk(*holders):
    """Return weak references to a risk's parts, the largest tensors among them."""
    risk = holders[0]
    parts = [*holders, risk._model, risk._model.module, risk._model._flat.theta]
    parts += [risk._sums, risk._ways, risk._graphs]
    parts += [graph.prepare for graph in risk._graphs.graphs.values()]
    kept = [getattr(holder, "_kept", {}).values() for holder in holders]
    parts += [t for of in kept for ts in of for t in ts if isinstance(t, torch.Tensor)]
    return [weakref.ref(part) for part in parts]


def default():
    return (held := ask(make())), of_a_risk(*held)


def traced():
    held = ask(make())
    assert set(held[1].paths.values()) >= {"graph"}
    return held, of_a_risk(*held)


def not_traced():
    held = ask(make(quantile))
    return held, of_a_risk(*held)


def branching():
    held = ask(make(branch))
    assert "vmap" in str(held[0].paths)
    return held, of_a_risk(*held)


def finite_differences():
    return (held := ask(make(hvp="finite_difference"))), of_a_risk(*held)


def streamed():
    held = ask(make(examples=(TensorDataset(*data()),), chunk_size=5))
    return held, of_a_risk(*held)


def audited():
    risk = make()
    risk.audit()
    held = [risk, risk.to(dtype=torch.float64)]
    return held, of_a_risk(*held)


def refused():
    held = ask(make())
    for call in (held[1].hvp, held[0].gradient, held[0].squared_norms):
        with pytest.raises((FloatingPointError, ValueError)):
            call(torch.full((1,), torch.nan))
    with pytest.raises(FloatingPointError):
        held[1].hvp(torch.full((held[0].n_params,), torch.nan))
    return held, of_a_risk(*held)


def operators():
    risk = make()
    theta = risk.params()
    kinds = [getattr(curvature, name) for name in curvature.__all__]
    kinds = [
        kind
        for kind in kinds
        if isinstance(kind, type)
        and issubclass(kind, curvature.RiskOperator)
        and kind is not curvature.RiskOperator
    ]
    held = [risk]
    for kind in kinds:
        given = [torch.ones(31)] if "Preconditioned" in kind.__name__ else []
        operator = kind(risk, theta, *given)
        operator.matvec(torch.randn(31))
        operator.to_scipy() @ torch.randn(31).numpy()
        operator.to_dense(), operator.trace()
        held.append(operator)
    curvature.hessian_eigenpairs(risk, theta, 2)
    curvature.covariance_eigenpairs(risk, theta, 2)
    return held, of_a_risk(*held)


def estimator():
    X, y = (part.numpy() for part in data())
    clf = NoisyDiffusionClassifier(
        Apply(torch.tanh), max_iter=4, record_every=2, random_state=0
    ).fit(X, y)
    clf.predict(X)
    held = [clf.risk_, clf]
    return held, [*of_a_risk(*held), weakref.ref(clf.module_)]


def analyzers():
    X, y = (part.numpy() for part in data())
    held = []
    for kind in (CurvatureAnalyzer, NoiseCovarianceAnalyzer):
        analyzer = kind(Apply(torch.tanh), loss="cross_entropy", n_components=2)
        analyzer.fit(X, y).eigen()
        analyzer.trace(), analyzer.diagonal(), analyzer.transform(X, y)
        analyzer.score(X, y)
        held += [analyzer.risk_, analyzer, analyzer._operator(analyzer.risk_)]
    return held, of_a_risk(*held)


PATHS = [default, traced, not_traced, branching, finite_differences, streamed, audited]
PATHS += [refused, operators, estimator, analyzers]


@pytest.mark.parametrize("path", PATHS)
def test_what_nobody_names_is_gone(path, monkeypatch):
    if path in (traced, not_traced):
        monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    gc.collect()
    gc.disable()
    try:
        held, references = path()
        held.clear()
        del held
        alive = [reference() for reference in references]
        assert [type(part) for part in alive if part is not None] == []
    finally:
        gc.enable()


def test_the_first_risk_of_a_process():
    """PyTorch's own first imports leave a cycle that holds what called them."""
    code = (
        "import gc, weakref, torch\n"
        "from flatmin.risk import EmpiricalRisk\n"
        "gc.collect(); gc.disable()\n"
        "def first():\n"
        "    X, y = torch.randn(3, 2), torch.randn(3, 1)\n"
        "    risk = EmpiricalRisk(torch.nn.Linear(2, 1), 'squared_error', X, y)\n"
        "    risk.linearize(risk.params()).hvp(torch.ones(3))\n"
        "    return weakref.ref(risk), weakref.ref(X)\n"
        "raise SystemExit(any(reference() is not None for reference in first()))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
