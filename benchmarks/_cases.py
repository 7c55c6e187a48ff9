"""What flatmin is timed on: the rows of the design's table."""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _problems import BATCH_SIZE, Problem
from _timing import seconds
from torch import Tensor

from flatmin.curvature import hessian_eigenpairs
from flatmin.dynamics import FlatBinding, NoisyDescent, simulate
from flatmin.estimators import NoisyDiffusionRegressor
from flatmin.modules import cubic_regression_mlp
from flatmin.noise import METHODS, NoiseLaw, make_noise_law
from flatmin.risk import EmpiricalRisk, TwoBasinsRisk

__all__ = ["FLATMIN", "NETWORKS", "Case", "Work", "bare_loop"]

NETWORKS = ("lenet", "transformer", "tabular")

Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """One call of a library, ready to be timed."""

    call: Call
    # From what the call returned to flatmin's normalisation; untimed.
    answer: Callable[[Any], Any] = lambda result: result
    prime: Call | None = None  # what to run first, where the call itself is too long
    less: Call | None = None  # timed beside the call and subtracted
    steps: int = 1  # what one call counts as
    unit: Call | None = None  # where it is not the problem's bare gradient
    note: Callable[[], str] = str


@dataclass(frozen=True)
class Case:
    """One cell of the table: some work by some library."""

    work: str
    library: str
    make: Callable[[Problem, Tensor, Any], Work]  # of problem, direction v, setting
    quantity: str | None = None  # what the answer is compared with
    problems: tuple[str, ...] = NETWORKS
    settings: tuple[Any, ...] = (None,)  # from the loosest to the tightest
    quick: tuple[str, ...] = (*NETWORKS, "cubic")  # on which problems with --quick

    @property
    def name(self) -> str:
        return f"{self.work}, {self.library}"


def make_risk(problem: Problem) -> EmpiricalRisk:
    return EmpiricalRisk(problem.module, problem.loss, problem.X, problem.y)


def _gradient(problem: Problem, v: Tensor, setting: Any) -> Work:
    risk, theta = make_risk(problem), problem.theta()
    call = functools.partial(risk.gradient, theta)
    return Work(call)


def _product(quantity: str, *, prepared: bool) -> Callable[..., Work]:
    def make(problem: Problem, v: Tensor, setting: Any) -> Work:
        risk, theta = make_risk(problem), problem.theta()
        point = risk.linearize(theta)

        def use() -> Any:
            return getattr(point, quantity)(v)

        def prepare_and_use() -> Any:
            return getattr(risk.linearize(theta), quantity)(v)

        def path() -> str:
            return risk.paths[quantity]

        if prepared:
            return Work(use, note=path)
        return Work(prepare_and_use, less=use, note=path)

    return make


def _variances(problem: Problem, v: Tensor, setting: Any) -> Work:
    risk, theta = make_risk(problem), problem.theta()
    call = functools.partial(risk.gradient_variances, theta)
    return Work(call, note=lambda: risk.paths["per-example sums"])


def _squared_norms(problem: Problem, v: Tensor, setting: Any) -> Work:
    risk, theta = make_risk(problem), problem.theta()
    call = functools.partial(risk.squared_norms, theta)
    return Work(call, note=lambda: risk.paths["per-example sums"])


def _trace(risk: EmpiricalRisk, theta: Tensor) -> None:
    """Do what a risk does once in its life, before a solver's call is timed."""
    risk.linearize(theta).hvp(theta)
    risk.gradient_variances(theta)


def _eigenpairs(problem: Problem, v: Tensor, setting: Any) -> Work:
    risk, theta = make_risk(problem), problem.theta()
    counts = []

    def call() -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(0)
        pairs = hessian_eigenpairs(
            risk, theta, problem.n_components, tol=setting, rng=rng
        )
        counts.append(pairs.n_matvecs)
        return pairs.eigenvalues, pairs.eigenvectors

    prime = functools.partial(_trace, risk, theta)
    return Work(call, prime=prime, note=lambda: f"{counts[-1]} products")


def _refresh(problem: Problem, v: Tensor, setting: Any) -> Work:
    risk, theta = make_risk(problem), problem.theta()
    law = _law("gld_hessian", problem)

    def call() -> Any:
        return law.refresh(risk, theta, torch.Generator().manual_seed(0))

    prime = functools.partial(_trace, risk, theta)
    return Work(call, prime=prime, answer=lambda state: (None, state.eigenvectors))


def _iteration(name: str, *, refreshed: bool = True) -> Callable[..., Work]:
    """Refresh when due, noisy gradient, step: what an estimator runs."""

    def make(problem: Problem, v: Tensor, setting: Any) -> Work:
        risk, theta = make_risk(problem), problem.theta()
        law = _law(name, problem)
        # A whole number of refresh periods; a minibatch step is short.
        steps = max(law.refresh_every, 50 if name == "sgd" else 3)
        descent = _descent(risk, problem, law)
        if not refreshed:
            descent.refresh()
            law = copy.copy(law).set_params(refresh_every=10**9)
            descent.law = law

        def trace(_: Any) -> Tensor:
            rng = torch.Generator().manual_seed(0)
            return law.trace(risk, theta, law.refresh(risk, theta, rng))

        return Work(lambda: descent.run(steps), answer=trace, steps=steps)

    return make


def _law(name: str, problem: Problem) -> NoiseLaw:
    known = METHODS[name]._get_param_names()
    settings = {"batch_size": BATCH_SIZE, "n_components": problem.n_components}
    return make_noise_law(name, **{k: v for k, v in settings.items() if k in known})


def _descent(risk: EmpiricalRisk, problem: Problem, law: NoiseLaw) -> NoisyDescent:
    binding = FlatBinding(copy.deepcopy(problem.module))
    params = binding.params_for(torch.optim.SGD)  # as an estimator does
    optimizer = torch.optim.SGD(params, lr=problem.lr)
    rng = torch.Generator().manual_seed(0)
    return NoisyDescent(risk, law, binding, optimizer, rng=rng)


def bare_loop(problem: Problem, steps: int) -> Call:
    """Return a plain training loop: what an iteration of a tiny network is held to."""
    module = copy.deepcopy(problem.module)
    optimizer = torch.optim.SGD(module.parameters(), lr=problem.lr)

    def loop() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            problem.criterion(module(problem.X), problem.y).backward()
            optimizer.step()

    return loop


def _tiny_descent(name: str) -> Callable[..., Work]:
    def make(problem: Problem, v: Tensor, setting: Any) -> Work:
        descent = _descent(make_risk(problem), problem, make_noise_law(name))
        return Work(
            lambda: descent.run(200), steps=200, unit=bare_loop(problem, steps=1)
        )

    return make


def _tiny_estimator(problem: Problem, v: Tensor, setting: Any) -> Work:
    """All iterations of a fit but those of a shorter fit, set-up and ends left out."""

    def fit(max_iter: int) -> Call:
        estimator = NoisyDiffusionRegressor(
            cubic_regression_mlp, method="gd", lr=problem.lr, max_iter=max_iter
        )
        X, y = problem.X.numpy(), problem.y.flatten().numpy()
        return lambda: estimator.fit(X, y)

    unit = bare_loop(problem, steps=1)
    return Work(fit(1100), less=fit(100), steps=1000, unit=unit)


def _basins(name: str) -> Callable[..., Work]:
    """600 iterations of 100 chains of the paper's example in two dimensions."""
    known = METHODS[name]._get_param_names()
    settings = {
        "batch_size": 1, "refresh_every": 1, "n_components": 2, "source": "examples"
    }  # fmt: skip
    law = make_noise_law(name, **{k: v for k, v in settings.items() if k in known})

    def make(problem: Problem, v: Tensor, setting: Any) -> Work:
        rng = torch.Generator().manual_seed(0)
        risk = TwoBasinsRisk.from_paper("matched", chains=(100,), rng=rng)
        times = []

        def run() -> None:
            start = torch.ones(2, dtype=risk.dtype)
            simulate(risk, law, start, lr=0.006, n_iter=600, n_chains=100, rng=0)

        return Work(
            lambda: times.append(seconds(run)),
            steps=600,
            unit=bare_loop(problem, steps=1),
            note=lambda: f"{statistics.median(times):.2f} s for 600",
        )

    return make


TRACES = dict.fromkeys(METHODS, "trace")
TRACES["gld_fisher"] = "uncentred trace"
for _name in ("gd", "sgd", "gld_const", "gld_leading"):
    del TRACES[_name]  # not matched in trace

# Of the laws in the design's table; the others cost the same as one of these.
QUICK_LAWS = ("gld_full", "gld_dynamic", "gld_leading", "gld_hessian")

FLATMIN = [
    Case("gradient", "flatmin", _gradient, "gradient"),
    Case("H v", "flatmin", _product("hvp", prepared=True), "hvp"),
    Case("prepare H v", "flatmin", _product("hvp", prepared=False), "hvp"),
    Case("G v", "flatmin", _product("ggn", prepared=True), "ggn"),
    Case("prepare G v", "flatmin", _product("ggn", prepared=False), "ggn"),
    Case("diag Σ", "flatmin", _variances, "variances"),
    Case("‖gᵢ‖²", "flatmin", _squared_norms, "squared norms"),
    Case("eigenpairs of H", "flatmin", _eigenpairs, "eigenpairs", settings=(1e-4,)),
    Case(
        "refresh of gld_hessian", "flatmin", _refresh, "eigenvectors", quick=("lenet",)
    ),
    *(
        Case(
            f"iteration of {name}",
            "flatmin",
            _iteration(name),
            TRACES.get(name),
            quick=("lenet",) if name in QUICK_LAWS else (),
        )
        for name in METHODS
    ),
    Case(
        "iteration of gld_ggn, no refresh",
        "flatmin",
        _iteration("gld_ggn", refreshed=False),
        "trace",
        quick=("lenet",),
    ),
    Case("iteration of gd", "flatmin", _tiny_descent("gd"), problems=("cubic",)),
    Case(
        "iteration of gld_full",
        "flatmin",
        _tiny_descent("gld_full"),
        problems=("cubic",),
    ),
    *(
        Case(
            f"100 chains in 2-D, {name}", "flatmin", _basins(name), problems=("cubic",)
        )
        for name in ("gd", "gld_diagonal", "gld_leading", "gld_hessian")
    ),
    Case("iteration of gd", "flatmin, estimator", _tiny_estimator, problems=("cubic",)),
]
