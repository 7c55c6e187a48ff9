"""What a call is said to cost, against the passes that it makes."""

import functools

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from flatmin import CurvatureAnalyzer, NoiseCovarianceAnalyzer
from flatmin.analysis import _cost
from flatmin.curvature import _eigenpairs
from flatmin.measures import _alignment_by_layer
from flatmin.risk import EmpiricalRisk
from flatmin.risk.products.linearize import Linearization

# In gradients: two passes for a product, one for what is prepared, two for a sweep.
WEIGHTS = {
    EmpiricalRisk: {
        **dict.fromkeys(("gradient", "value_and_gradient", "weighted_gradient"), 1),
        **dict.fromkeys(("gradient_variances", "value_gradient_and_variances"), 2),
        **dict.fromkeys(("per_example_gradients", "squared_gradient_sum"), 2),
        **{"gauss_newton_traces": None, "linearize": 1},
    },
    Linearization: {"hvp": 2, "ggn": 2, "fisher": 2, "directional_derivatives": 1},
}


@pytest.fixture
def passes(monkeypatch):
    """Return a list of the gradients that what is called adds up to."""
    done, inside = [], []

    def sweeps(risk, theta, rng=None, *, n_sweeps=1):
        return 2 * (risk.n_outputs if rng is None else n_sweeps)

    def counted(function, weight):
        @functools.wraps(function)
        def call(*args, **kwargs):
            if not inside:  # not what one of them calls
                done.append(sweeps(*args, **kwargs) if weight is None else weight)
            inside.append(function)
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()

        return call

    for kind, weights in WEIGHTS.items():
        for name, weight in weights.items():
            monkeypatch.setattr(kind, name, counted(getattr(kind, name), weight))
    return done


def problem(width, n=40):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 4))
        return net, torch.randn(n, 8).numpy(), np.arange(n) % 4


SMALL, LARGE = problem(3), problem(60)  # 43 and 784 parameters


def calls(X, y):
    d = 43 if X is SMALL[1] else 784
    curvature = {
        "eigen": ({"k": 3}, lambda a, o: a.eigen(**o)),
        "trace": ({}, lambda a, o: a.trace(**o)),
        "diagonal": ({}, lambda a, o: a.diagonal(**o)),
        "density": ({"n_probes": 3, "n_steps": 20}, lambda a, o: a.density(**o)),
        "matvec": ({}, lambda a, o: a.matvec(np.ones(d))),
        "transform": ({}, lambda a, o: a.transform(X, y)),
        "score": ({}, lambda a, o: a.score(X, y)),
    }
    noise = {name: curvature[name] for name in ("eigen", "trace", "diagonal")}
    noise |= {name: curvature[name] for name in ("transform", "score")}
    noise["sample"] = ({"n": 3}, lambda a, o: a.sample(**o))
    noise["alignment"] = ({"k": 3}, lambda a, o: a.alignment(**o))
    by_layer = {"k": 3, "by_layer": True}
    noise["alignment, by layer"] = (by_layer, lambda a, o: a.alignment(**o))
    return curvature, noise


MATRICES = ("hessian", "ggn", "fisher", "empirical_fisher")
CASES = [(m, name) for m in MATRICES for name in calls(*SMALL[1:])[0]]
CASES += [("covariance", name) for name in calls(*SMALL[1:])[1]]


def analyzer(matrix, data):
    net, X, y = data
    settings = {"loss": "cross_entropy", "n_components": 4, "random_state": 0}
    if matrix == "covariance":
        return NoiseCovarianceAnalyzer(net, **settings).fit(X, y)
    return CurvatureAnalyzer(net, matrix=matrix, **settings).fit(X, y)


@pytest.mark.parametrize(("matrix", "name"), CASES)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_it_is_what_the_call_does(passes, matrix, name, data):
    model = analyzer(matrix, data)
    options, call = calls(*data[1:])[matrix == "covariance"][name]
    cost = model.cost(name.partition(",")[0], **options)
    passes.clear()
    call(model, options)
    done = sum(passes)
    if cost.at_most == cost.gradients:
        assert cost.gradients == done
    else:
        assert done <= cost.at_most
        assert 1 / 3 < cost.gradients / done < 3


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_few_outputs_are_a_sweep_each(passes, n_outputs):
    X, y = torch.randn(20, 2), torch.randn(20, n_outputs)
    net = nn.Linear(2, n_outputs)
    model = CurvatureAnalyzer(net, matrix="ggn", loss="squared_error").fit(X, y)
    cost = model.cost("trace")
    passes.clear()
    model.trace()
    assert cost.gradients == cost.at_most == sum(passes) == 2 * n_outputs


def test_seconds_and_memory():
    model = analyzer("hessian", SMALL)
    cost = model.cost("eigen", k=3)
    assert cost.seconds == cost.gradients * cost.seconds_per_gradient > 0
    assert cost.example_gradients == 40 * cost.gradients == 40 * (1 + 2 * 43)
    # The matrix, what is symmetrised, and its eigenvectors, in float64.
    assert cost.memory == 3 * 43**2 * 8
    text = repr(cost)
    assert text.startswith("eigen(k=3): 87 gradients of 40 examples, ")
    assert cost.to_frame().loc["eigen(k=3)", "gradients"] == 87


def test_a_call_that_is_not_there():
    model = analyzer("hessian", SMALL)
    with pytest.raises(ValueError, match="Unknown call 'eigne'; did you mean 'eigen'"):
        model.cost("eigne")
    with pytest.raises(ValueError, match="Unknown argument of eigen 'n'"):
        model.cost("eigen", n=3)
    with pytest.raises(ValueError, match=r"k must be an integer of at least 1\. Got 0"):
        model.cost("eigen", k=0)
    bare = CurvatureAnalyzer(SMALL[0], loss="cross_entropy")
    with pytest.raises(NotFittedError):
        bare.cost("eigen")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"which": "XX"}, "Unknown which 'XX'"),
        ({"basis_dtype": "float16"}, r"basis_dtype must be .*'float16'"),
        ({"k": 44}, "k must be .* 43"),
        ({"k": 10, "max_basis": 5}, "max_basis must be above k = 10"),
    ],
)
def test_no_cost_of_eigenpairs_that_are_refused(options, reason):
    model = analyzer("hessian", SMALL)
    for ask in (model.eigen, functools.partial(model.cost, "eigen")):
        with pytest.raises(ValueError, match=reason):
            ask(**options)


@pytest.mark.parametrize(
    ("matrix", "call", "options", "reason"),
    [
        ("hessian", "trace", {"max_matvecs": 5}, "max_matvecs must be .* 6"),
        ("hessian", "diagonal", {"rtol": -1}, "rtol must be"),
        ("hessian", "density", {"n_probes": 1}, "n_probes must be .* 2"),
        ("covariance", "alignment", {"rtol": float("nan")}, "rtol must be"),
        ("covariance", "alignment", {"k": 40}, "k must be .* 39"),
    ],
)
def test_no_cost_of_estimates_that_are_refused(matrix, call, options, reason):
    model = analyzer(matrix, SMALL)
    for ask in (getattr(model, call), functools.partial(model.cost, call)):
        with pytest.raises(ValueError, match=reason):
            ask(**options)


def test_no_cost_of_the_other_end_of_a_subset():
    X, y = torch.randn(500, 3), torch.randint(2, (500,))
    model = CurvatureAnalyzer(
        nn.Linear(3, 2), loss="cross_entropy", subset=400, random_state=0
    ).fit(X, y)
    for ask in (model.eigen, functools.partial(model.cost, "eigen")):
        with pytest.raises(ValueError, match="which='SA' has no sampling error"):
            ask(k=1, which="SA")


def test_the_layers_without_their_rows(passes, monkeypatch):
    """Where the gradients of all are too many to hold, each layer asks for its own."""
    for module in (_alignment_by_layer, _cost, _eigenpairs):
        monkeypatch.setattr(module, "GRAM_LIMIT", 100)
    model = analyzer("covariance", SMALL)
    cost = model.cost("alignment", k=3, by_layer=True)
    passes.clear()
    model.alignment(3, by_layer=True)
    assert 1 / 3 < cost.gradients / sum(passes) < 3
    assert sum(passes) <= cost.at_most


def test_layers_of_a_selection():
    chosen = analyzer("covariance", SMALL).set_params(select="0")
    with pytest.raises(ValueError, match=r"of all layers\. Got select='0'"):
        chosen.cost("alignment", by_layer=True)
    with pytest.raises(TypeError, match="by_layer must be"):
        chosen.cost("alignment", by_layer=2)
