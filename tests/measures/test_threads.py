"""Measures and operators of one risk in two threads, at a θ of its own in each."""

import inspect

import torch
from torch import nn

import flatmin.curvature
import flatmin.measures
from flatmin.curvature import RiskOperator
from flatmin.linalg import LinearOperator, eigsh, trace
from flatmin.risk import EmpiricalRisk

from ..threads import public, race

# What a function cannot do without, or does too long.
GIVEN = {
    "bezier_profile": {"n_iter": 2, "n_draws": 2, "n_points": 5},
    "edge_of_stability": {"lr": 0.1},
    "minibatch_gaussianity": {"batch_size": 4, "n_batches": 50},
    "minibatch_eigenpairs": {"batches": torch.arange(12).view(4, 3)},
    "PreconditionedCovarianceOperator": {"preconditioner": torch.full((10,), 2.0)},
    "adaptive_expected_sharpness": {"n_draws": 5},
    "expected_sharpness": {"n_draws": 5},
    "non_uniformity": {"tol": 1e-2},
    "batch_sharpness": {"batch_size": 4, "n_draws": 5},
    "tic": {"damping": 1.0, "matrix": "ggn"},
    "rescale_layers": {"factors": {}},
}


def make_risk():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 1), nn.Tanh(), nn.Linear(1, 3))
        X = torch.randn(12, 3)
    return EmpiricalRisk(module, "cross_entropy", X, torch.arange(12) % 3)


def thetas(risk):
    rng = torch.Generator().manual_seed(0)
    theta = risk.params()
    return [theta + torch.randn(theta.shape, generator=rng) for _ in range(2)]


def of_a_risk(module):
    """Return what of a module takes a risk and a θ, by name."""
    found = {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in found.items()
        if callable(value) and next(iter(inspect.signature(value).parameters)) == "risk"
    }


def call(function, risk, theta):
    known = inspect.signature(function).parameters
    options = dict(GIVEN.get(function.__name__, {}))
    if "k" in known:
        options["k"] = 2
    if "rng" in known:
        options["rng"] = torch.Generator().manual_seed(0)
    points = (theta, 2 * theta) if "theta_b" in known else (theta,)
    return function(risk, *points, **options)


def test_every_measure_in_two_threads():
    risk = make_risk()
    functions = of_a_risk(flatmin.measures)
    for name, value in of_a_risk(flatmin.curvature).items():
        if inspect.isfunction(value):
            functions[name] = value
    assert len(functions) > 25

    def at(theta):
        return {name: lambda f=f: call(f, risk, theta) for name, f in functions.items()}

    right, faults = race([at(theta) for theta in thetas(risk)])
    assert not faults
    assert right == 2 * len(functions)


def test_every_product_of_every_operator_in_two_threads():
    """Each operator is made once and used by both threads, as is its risk."""
    risk = make_risk()
    kinds = [
        kind
        for name, kind in of_a_risk(flatmin.curvature).items()
        if inspect.isclass(kind) and kind is not RiskOperator
    ]
    assert len(kinds) > 4
    operators = []
    for theta in thetas(risk):
        operators += [call(kind, risk, theta) for kind in kinds]
        operators.append(operators[0] - 0.5 * operators[1])

    def work(seed):
        v = torch.randn(10, 2, generator=torch.Generator().manual_seed(seed))
        calls = {}
        for i, A in enumerate(operators):
            of = {
                "matvec": lambda A=A: A.matvec(v[:, 0]),
                "matmat": lambda A=A: A.matmat(v),
                "to_dense": lambda A=A: A.to_dense(),
                "trace": lambda A=A: A.trace(),
                "trace_stderr": lambda A=A: A.trace_stderr(),
                "to_scipy": lambda A=A: A.to_scipy() @ v[:, 0].numpy(),
                "n_matvecs": lambda A=A: type(A.n_matvecs),
                "counted": lambda A=A: [
                    eigsh(A, 2, rng=seed).n_matvecs,
                    trace(A, rng=seed).n_matvecs,
                ],
            }
            assert set(of) >= public(LinearOperator)
            if hasattr(A, "diagonal"):
                of["diagonal"] = lambda A=A: A.diagonal()
            assert set(of) >= public(type(A))
            calls |= {f"{i} {type(A).__name__} {n}": f for n, f in of.items()}
        return calls

    work = [work(seed) for seed in (0, 1)]
    right, faults = race(work)
    assert not faults
    assert right == sum(map(len, work))
