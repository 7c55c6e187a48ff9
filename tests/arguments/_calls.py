"""A valid call of everything public, found by inspection, on the smallest problems."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn

import flatmin
from flatmin import linalg, measures, plotting
from flatmin.curvature import GGNOperator, HessianOperator
from flatmin.risk import (
    DoubleWellRisk,
    EmpiricalRisk,
    FunctionRisk,
    LabelDraw,
    LinearRegressionRisk,
    ParameterLayout,
    QuadraticRisk,
    TwoBasinsRisk,
)

# What is not called by itself, and why.
LEFT_OUT = {
    "what estimators are made of": [
        *("Checkpoints", "FlatBinding", "GradientBatches", "MeanLoss", "NoisyDescent"),
        *("EarlyStopping", "KeptParams", "check_metrics", "check_room", "count_kept"),
        *("measure_metrics", "Schedule", "make_schedule"),
        *("NoisyNetClassifier", "NoisyNetRegressor", "Recorder", "StopTraining"),
        *("callback_settings", "check_callbacks", "check_monitors"),
        *("check_plain_steps", "check_rows", "resolve_optimizer"),
        *("record_warmup", "run_warmup", "store_callbacks", "WarmupResult"),
        *("operator_from_storable", "operator_to_storable", "Step", "step_for"),
        *("MatchedState", "order_eigenvalues"),
    ],
    "results, which others fill": [
        *("Alignment", "Audit", "ComparisonResult", "Cost", "CurveProfile", "Diagonal"),
        *("Eigenpairs", "Estimate", "Gaussianity", "GradientNoise", "LabelDraw"),
        *(
            "LayerAlignments",
            "LossScaledAlignment",
            "NoiseSpectrum",
            "PairedDifference",
        ),
        *("ParameterLayout", "PowerLaw", "PowerLaws", "Proportion", "SignalToNoise"),
        *("Simulation", "SpectralDensity", "SqrtResult", "Trace", "TraceProduct"),
        *("Trajectory", "GranulatedTau", "TailIndex"),
        "Sampling",
    ],
    "to subclass": [
        *("AnalyticRisk", "ExampleLoss", "GaussianLaw", "LinearOperator", "NoiseLaw"),
        *("MatchedGaussianLaw", "MatchedLaw", "Projected", "RiskOperator"),
    ],
    "protocols, tables, exceptions": [
        *("Risk", "LinearizedRisk", "Which", "METHODS", "OPTIMIZERS", "LOSSES"),
        "SCHEDULES",
        *("SHARPNESS_MEASURES", "DivergenceError", "UndefinedNoiseError"),
    ],
    "no arguments": ["GD", "show_versions"],
    "changes a table": ["register_law", "register_measure"],
    "reads 170 MB": ["fetch_cifar10"],
    "of folders: see tests/comparison": ["merge_checkpoints"],
}

# Parameters that have no wrong value here, or reach the network.
_FREE = {
    *("verbose", "download_if_missing", "previous", "tags", "deep"),
    *("plot_options", "settings", "legacy", "fit_params", "n_jobs"),
}


class Counting(nn.Linear):
    """Says how often it was called, in any copy."""

    calls = 0

    def forward(self, X):
        Counting.calls += 1
        return super().forward(X)


@dataclass
class Call:
    """Something public, and arguments that it takes."""

    name: str
    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]  # anew each time
    trains: bool = False  # the module runs before a refusal; an iteration must not


class World:
    """What the arguments are taken from."""

    def __init__(self) -> None:
        rng = np.random.RandomState(0)
        self.X = rng.randn(12, 3).astype(np.float32)
        self.y = (self.X[:, 0] > 0).astype(np.int64)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = Counting(3, 2)
        self.risk = EmpiricalRisk(self.module, "cross_entropy", self.X, self.y)
        self.theta = self.risk.params()
        matrix = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
        slopes = torch.tensor([[1.0, 0.5], [-1.0, -0.5]], dtype=torch.float64)
        self.quadratic = QuadraticRisk(matrix, slopes)
        self.operator = linalg.DenseOperator(matrix)

    @cached_property
    def classifier(self) -> Any:
        return flatmin.NoisyDiffusionClassifier(
            self.module, max_iter=4, random_state=0
        ).fit(self.X, self.y)

    @cached_property
    def regressor(self) -> Any:
        return flatmin.NoisyDiffusionRegressor(
            nn.Linear(3, 1), max_iter=4, random_state=0
        ).fit(self.X, self.y.astype(float))

    @cached_property
    def curvature(self) -> Any:
        return flatmin.CurvatureAnalyzer(self.classifier, n_components=2).fit()

    @cached_property
    def noise(self) -> Any:
        return flatmin.NoiseCovarianceAnalyzer(self.classifier, n_components=2).fit()

    @cached_property
    def comparison(self) -> Any:
        clf = flatmin.NoisyDiffusionClassifier(self.module, max_iter=2)
        return flatmin.compare_dynamics(
            ["gd", "sgd"],
            self.X,
            self.y,
            estimator=clf,
            n_seeds=[1, 2],
            keep_params=True,
        )

    @cached_property
    def table(self) -> Any:
        return self.noise.alignment(2)

    @cached_property
    def density(self) -> Any:
        return linalg.spectral_density(self.operator, rng=0)

    @cached_property
    def alignment_display(self) -> Any:
        return plotting.AlignmentDisplay.from_results(
            [self.table, self.table], iterations=[0, 1]
        )

    @cached_property
    def trajectory_display(self) -> Any:
        return plotting.TrajectoryDisplay.from_results(self.comparison)


@cache
def world() -> World:
    """Return the only one."""
    return World()


def _valid(name: str) -> Any:
    """Return a right value for a parameter of this name, anew."""
    w = world()
    made: dict[str, Callable[[], Any]] = {
        "A": lambda: torch.eye(3)[:, :2],
        "B": lambda: torch.eye(3)[:, :2],
        "U": lambda: torch.eye(3)[:, :2],
        "V": lambda: torch.eye(3)[:, :2],
        "X": lambda: w.X.copy(),
        "alpha": lambda: 1.5,
        "angle": lambda: 0.5,
        "ax": lambda: None,
        "baseline": lambda: [1.0, 2.0, 4.0],
        "batch_size": lambda: 4,
        "batches": lambda: torch.arange(12).view(3, 4),
        "column": lambda: "loss",
        "damping": lambda: 1.0,
        "data_home": lambda: None,
        "density": lambda: w.density,
        "diagonal": lambda: torch.ones(3),
        "draw": lambda: LabelDraw(0.1, 0.1),
        "eigenvalues": lambda: torch.ones(2),
        "eigenvectors": lambda: torch.eye(3)[:, :2],
        "estimator": lambda: w.classifier,
        "estimators": lambda: [w.classifier],
        "fraction": lambda: None,
        "function": lambda: lambda v: 2 * v,
        "grid": lambda: torch.linspace(0, 4, 3, dtype=torch.float64),
        "happened": lambda: torch.tensor([True, False]),
        "indices": lambda: torch.tensor([0, 1, 2]),
        "k": lambda: 2,
        "loss": lambda: "cross_entropy",
        "lr": lambda: 0.1,
        "matrix": lambda: torch.eye(2),
        "measures": lambda: {"norm": lambda risk, theta: theta.norm()},
        "methods": lambda: ["sgd"],
        "minimum": lambda: torch.zeros(2),
        "module": lambda: w.module,
        "n": lambda: 2,
        "n_examples": lambda: 12,
        "n_iter": lambda: 3,
        "n_params": lambda: 8,
        "name": lambda: "sgd",
        "noise": lambda: torch.randn(16, 2, generator=torch.Generator().manual_seed(0)),
        "offsets": lambda: torch.zeros(4, 2),
        "operator": lambda: linalg.DenseOperator(torch.eye(3)),
        "optimizer": _stepped_adam,
        "p": lambda: 2,
        "p_values": lambda: [0.1, 0.2],
        "path": lambda: "result.json",
        "patterns": lambda: "weight",
        "point": lambda: w.risk.linearize(w.theta),
        "preconditioner": lambda: torch.ones(8),
        "result": lambda: w.comparison,
        "results": lambda: [w.comparison],
        "risk": lambda: w.risk,
        "rng": lambda: torch.Generator().manual_seed(0),
        "sample_weight": lambda: np.ones(12),
        "scale": lambda: torch.tensor(1.0),
        "size": lambda: 3,
        "slopes": lambda: torch.ones(3, 2),
        "solutions": lambda: np.eye(3, 8),
        "start": lambda: torch.ones(2, dtype=torch.float64),
        "state": lambda: None,
        "table": lambda: w.table,
        "tables": lambda: w.table,
        "theta": lambda: w.theta.clone(),
        "theta_a": lambda: w.theta.clone(),
        "theta_b": lambda: 2 * w.theta,
        "thetas": lambda: torch.stack([w.theta, w.theta]),
        "trace": lambda: torch.tensor(3.0),
        "u": lambda: torch.ones(12, 2),
        "v": lambda: torch.ones(8),
        "v0": lambda: torch.ones(3),
        "values": lambda: [1.0, 2.0, 3.0],
        "way_out": lambda: "",
        "who": lambda: "A test",
        "y": lambda: w.y.copy(),
        "z": lambda: torch.ones(3),
    }
    return made[name]()


def _models() -> Any:
    rows = [(seed, lr, lr + seed, lr) for seed in (0, 1) for lr in (0.1, 0.2)]
    return pd.DataFrame(rows, columns=["seed", "lr", "flat", "gap"])


def _stepped_adam() -> Any:
    module = world().module
    optimizer = torch.optim.Adam(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


# What differs from the above, by call and parameter.
_OWN: dict[str, dict[str, Callable[[], Any]]] = {
    "load_noisy_fashion_mnist": {"n_clean": lambda: 10, "n_corrupt": lambda: 5},
    "fetch_fashion_mnist": {"subset": lambda: "test"},
    "expected_sharpness": {"n_draws": lambda: 2},
    "adaptive_expected_sharpness": {"n_draws": lambda: 2},
    "minibatch_gaussianity": {"n_batches": lambda: 20, "k": lambda: 2},
    "bezier_profile": {
        "n_iter": lambda: 2,
        "n_points": lambda: 3,
        "n_draws": lambda: 1,
    },
    "segment_profile": {"n_points": lambda: 3},
    "make_cubic_regression": {"n_samples": lambda: 4},
    "cubic_regression_mlp": {"n_params": lambda: 251},
    "MLP": {"n_features": lambda: 3, "n_outputs": lambda: 2},
    "VGG11": {"width": lambda: 0.02},
    "simulate": {
        "risk": lambda: world().quadratic,
        "n_chains": lambda: 3,
    },
    "ModuleLoss": {"f": lambda: lambda module, X, y: module(X).square().sum(1)},
    "FunctionRisk": {
        "f": lambda: lambda theta: (theta**2).sum(-1),
        "start": lambda: [1.0, 2.0],
    },
    "LinearRegressionRisk": {"X": lambda: torch.eye(3), "y": lambda: torch.ones(3)},
    "spectral_density": {"n_steps": lambda: 3},
    "subspace_share": {"v": lambda: torch.ones(3)},
    "random_projection_residual": {"k": lambda: 2},
    "corrupt_labels": {"random_state": lambda: 0, "n": lambda: 3},
    "alignment": {"k": lambda: 2},
    "alignment_by_layer": {"k": lambda: 2},
    "noise_spectrum": {"k": lambda: 2},
    "trace_hessian_covariance": {"k": lambda: 2},
    "EmpiricalRisk": {"y": lambda: world().y},
    "loss_scaled_alignment": {"k": lambda: 2},
    "batch_sharpness": {"n_draws": lambda: 2},
    "tic": {"matrix": lambda: "ggn"},
    "rescale_layers": {"factors": dict},
    "steps_to_loss": {"loss": lambda: 0.5},
    "granulated_tau": {
        "table": _models,
        "measure": lambda: "flat",
        "error": lambda: "gap",
        "factors": lambda: ["lr"],
        "n_resamples": lambda: 3,
    },
    "compare_dynamics": {
        "estimator": lambda: flatmin.NoisyDiffusionClassifier(
            world().module, max_iter=2
        ),
        "n_seeds": lambda: [1],
        "y": lambda: world().y,
        "X_test": lambda: world().X,
        "y_test": lambda: world().y,
    },
}

_TRAINING = {
    "module": lambda: Counting(3, 2),
    "max_iter": lambda: 3,
    "random_state": lambda: 0,
    "warmup": lambda: {"max_iter": 1},
}

_OPERATORS = {"v": lambda: torch.ones(3), "V": lambda: torch.eye(3)}
_ANALYTIC = {
    "theta": lambda: torch.ones(2, dtype=torch.float64),
    "thetas": lambda: torch.ones(3, 2, dtype=torch.float64),
    "v": lambda: torch.ones(2, dtype=torch.float64),
    "indices": lambda: torch.tensor([0, 1]),
    "batches": lambda: torch.tensor([[0, 1], [1, 0]]),
}


def _risk_methods(w: World) -> dict[str, tuple[Any, dict[str, Callable[[], Any]]]]:
    """Return objects whose methods are called, with values of their own."""
    linear = LinearRegressionRisk(torch.eye(2).double(), torch.ones(2).double())
    basins = TwoBasinsRisk(torch.zeros(2, 2).double(), 0.5)
    return {
        "EmpiricalRisk": (w.risk, {"dtype": lambda: "float32"}),
        "QuadraticRisk": (w.quadratic, _ANALYTIC),
        "LinearRegressionRisk": (
            linear,
            {**_ANALYTIC, "point": lambda: linear.linearize(torch.ones(2).double())},
        ),
        "TwoBasinsRisk": (basins, _ANALYTIC),
        "DoubleWellRisk": (
            DoubleWellRisk(dtype="float64"),
            {
                **_ANALYTIC,
                "theta": lambda: torch.ones(1, dtype=torch.float64),
                "thetas": lambda: torch.ones(3, 1, dtype=torch.float64),
                "v": lambda: torch.ones(1, dtype=torch.float64),
                "indices": lambda: torch.tensor([0]),
                "batches": lambda: torch.tensor([[0], [0]]),
            },
        ),
        "FunctionRisk": (
            FunctionRisk(
                lambda theta: (theta**4).sum(-1), torch.ones(2, dtype=torch.float64)
            ),
            _ANALYTIC,
        ),
        "ParameterLayout": (
            ParameterLayout.of(w.module),
            {
                "name": lambda: "weight",
                "tensors": lambda: dict(w.module.named_parameters()),
            },
        ),
        "DenseOperator": (linalg.DenseOperator(torch.eye(3)), _OPERATORS),
        "DiagonalOperator": (linalg.DiagonalOperator(torch.ones(3)), _OPERATORS),
        "ScaledIdentityOperator": (
            linalg.ScaledIdentityOperator(torch.tensor(2.0), 3),
            _OPERATORS,
        ),
        "LowRankOperator": (
            linalg.LowRankOperator(torch.ones(2), torch.eye(3)[:, :2]),
            _OPERATORS,
        ),
        "FunctionOperator": (linalg.FunctionOperator(lambda v: v, 3), _OPERATORS),
        "HessianOperator": (
            HessianOperator(w.risk, w.theta),
            {"V": lambda: torch.ones(8, 2)},
        ),
        "GGNOperator": (GGNOperator(w.risk, w.theta), {"V": lambda: torch.ones(8, 2)}),
        "SpectralDensity": (
            w.density,
            {"width": lambda: 0.1, "function": lambda: lambda x: x},
        ),
        "Linearization": (w.risk.linearize(w.theta), {}),
        "GradientNoise": (measures.gradient_noise(w.risk, w.theta), {}),
        "NoisyDiffusionClassifier": (
            w.classifier,
            {
                "y": lambda: world().y,
                "dtype": lambda: "float32",
                "device": lambda: "cpu",
            },
        ),
        "NoisyDiffusionRegressor": (
            w.regressor,
            {
                "y": lambda: world().y.astype(float),
                "dtype": lambda: "float32",
                "device": lambda: "cpu",
            },
        ),
        "CurvatureAnalyzer": (
            w.curvature,
            {
                "X": lambda: world().X,
                "y": lambda: world().y,
                "v": lambda: np.ones(8),
                "n_steps": lambda: 4,
                "call": lambda: "eigen",
            },
        ),
        "NoiseCovarianceAnalyzer": (
            w.noise,
            {
                "X": lambda: world().X,
                "y": lambda: world().y,
                "call": lambda: "sample",
            },
        ),
        "SharpnessScorer": (
            flatmin.SharpnessScorer(w.classifier, n_draws=2),
            {},
        ),
        "analysis.SpectralDensity": (
            w.curvature.density(),
            {"grid": lambda: [0.0, 1.0]},
        ),
        "ComparisonResult": (
            w.comparison,
            {
                "method": lambda: "gd",
                "seed": lambda: 1,
                "phase": lambda: "noise",
                "baseline": lambda: "gd",
                "measured": lambda: w.comparison.measure(_valid("measures")),
                "X": lambda: None,
                "y": lambda: None,
                "estimator": lambda: None,
            },
        ),
        "AlignmentDisplay": (w.alignment_display, {"k": lambda: 2}),
        "ComparisonDisplay": (
            plotting.ComparisonDisplay.from_results(w.comparison, columns="loss"),
            {"result": lambda: world().comparison, "x": lambda: "loss"},
        ),
        "SpectrumDisplay": (
            plotting.SpectrumDisplay.from_results(w.table, w.curvature.density()),
            {"k": lambda: 2},
        ),
        "TrajectoryDisplay": (
            w.trajectory_display,
            {
                "results": lambda: world().comparison,
                "quantities": lambda: ["loss"],
            },
        ),
        "LandscapeDisplay": (
            plotting.LandscapeDisplay(
                np.arange(2.0), np.ones((2, 2)), y=np.arange(2.0)
            ),
            {"n_points": lambda: 2, "loss": lambda: None},
        ),
        "SharpnessDisplay": (
            plotting.SharpnessDisplay([0.1, 0.2], {"a": np.ones((2, 2))}),
            {
                "n_draws": lambda: 2,
                "sizes": lambda: [0.1],
                "name": lambda: "a",
                "loss": lambda: None,
            },
        ),
    }


_DISPLAY_LOSS = {"loss": lambda: None, "dtype": lambda: None, "device": lambda: None}


def _arguments(
    function: Any, own: dict[str, Callable[[], Any]]
) -> Callable[[], dict[str, Any]]:
    """Return what makes valid arguments: values of one's own, by name, or defaults."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind
        not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        and name not in ("self", "args")
    }

    def make() -> dict[str, Any]:
        made = {}
        for name, parameter in parameters.items():
            if name in own:
                made[name] = own[name]()
            elif parameter.default is not inspect.Parameter.empty:
                made[name] = parameter.default
            else:
                made[name] = _valid(name)
        return made

    return make


def _fit(kind: Any) -> Callable[..., Any]:
    """Return a function of the parameters of an estimator, which fits it."""
    w = world()
    y = w.y if kind is flatmin.NoisyDiffusionClassifier else w.y.astype(float)
    return lambda **params: kind(**params).fit(w.X, y)


def _run_law(kind: Any) -> Callable[..., Any]:
    """Return a function of the settings of a law, which trains with it."""
    w = world()

    def run(**settings: Any) -> Any:
        return flatmin.NoisyDiffusionClassifier(
            Counting(3, 2), method=kind(**settings), max_iter=3, random_state=0
        ).fit(w.X, w.y)

    return run


def _analyse(kind: Any) -> Callable[..., Any]:
    def run(**params: Any) -> Any:
        analyzer = kind(**params).fit()
        return analyzer.eigen() if hasattr(analyzer, "eigen") else analyzer.score()

    return run


def _watch(**params: Any) -> Any:
    return flatmin.FlatnessMonitor(**params)(world().module, 0)


def public() -> dict[str, Any]:
    """Return all public names, with what they name."""
    names: dict[str, Any] = {}
    for found in [*pkgutil.iter_modules(flatmin.__path__), None]:
        if found is not None and (found.name.startswith("_") or not found.ispkg):
            continue
        package = importlib.import_module(
            "flatmin" if found is None else f"flatmin.{found.name}"
        )
        names |= {name: getattr(package, name) for name in package.__all__}
    return names


@cache
def calls() -> dict[str, Call]:
    """Return all calls by name."""
    w = world()
    known = public()
    left_out = {name for names in LEFT_OUT.values() for name in names}
    assert left_out <= known.keys(), left_out - known.keys()
    found: list[Call] = []
    for name, thing in known.items():
        if name in left_out:
            continue
        own = _OWN.get(name, {})
        trains = False
        function = thing
        if name.startswith("NoisyDiffusion"):
            outputs = 2 if name.endswith("Classifier") else 1
            own = {**_TRAINING, "module": lambda n=outputs: Counting(3, n)}
            own |= {"lr": lambda: 0.01, "loss": lambda: "auto"}
            own |= {"batch_size": lambda: None, "optimizer": lambda: "sgd"}
            function, trains = _fit(thing), True
        elif isinstance(thing, type) and issubclass(thing, flatmin.NoiseLaw):
            function, trains = _run_law(thing), True
        elif name in ("CurvatureAnalyzer", "NoiseCovarianceAnalyzer"):
            function = _analyse(thing)
            own = {"loss": lambda: None}
        elif name == "SharpnessScorer":
            function = _analyse(thing)
            own = {"estimator": lambda: w.classifier, "on": lambda: "training"}
            own |= {"n_draws": lambda: 2, "loss": lambda: None}
        elif name == "FlatnessMonitor":
            function, trains = _watch, True
            own = {"quantities": lambda: ["loss"], "budget": lambda: 10.0}
        elif name in ("compare_dynamics", "EmpiricalRisk"):
            trains = True
        elif name.endswith("Display"):
            continue  # its methods below
        make = _arguments(thing, own)
        found.append(Call(name, function, make, trains))
    for owner, (instance, own) in _risk_methods(w).items():
        for name, method in inspect.getmembers(instance, inspect.isroutine):
            module = getattr(method, "__module__", None) or ""
            theirs = name in (
                "get_params",
                "set_params",
                "with_module",
                "update_from",
                "wrap",
                # Of a network with BatchNorm: see tests/risk/test_batch_norm.py.
                "batch_statistics",
                "set_batch_statistics",
            )
            if (owner, name) == ("EmpiricalRisk", "set_params"):
                theirs = False
            if name[0] == "_" or theirs or not module.startswith("flatmin"):
                continue
            here = dict(own)
            if owner.endswith("Display") and name.startswith("from_"):
                here |= {**_DISPLAY_LOSS, "k": lambda: 2, "n_points": lambda: 3}
            if owner.endswith("Display") and name == "plot":
                here.pop("quantities", None)
            if name == "from_json":
                continue  # of files: see tests/comparison
            if owner == "EmpiricalRisk" and "weighted" in name:
                here["v"] = lambda: torch.ones(12)
            make = _arguments(method, here)
            trains = name in ("fit", "make_risk", "score", "measure") or (
                name in ("transform", "fit_transform", "audit", "from_paper")
                or name.startswith("from_")
            )
            found.append(Call(f"{owner}.{name}", method, make, trains))
    return {call.name: call for call in found if call.arguments()}


def wrong_parameters(call: Call) -> list[str]:
    """Return the parameters that are replaced."""
    return [name for name in call.arguments() if name not in _FREE]


def tidy() -> None:
    """Close what a drawing has opened."""
    plt.close("all")
