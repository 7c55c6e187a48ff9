"""flatmin: the shape of gradient noise, and the flatness of the minima it finds.

A public name is loaded when it is first asked for: who measures one network waits for
neither pandas nor skorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatmin import (  # noqa: F401
        analysis,
        comparison,
        curvature,
        datasets,
        dynamics,
        estimators,
        linalg,
        measures,
        modules,
        noise,
        plotting,
        risk,
    )
    from flatmin._utils.versions import show_versions
    from flatmin.analysis import (
        CurvatureAnalyzer,
        FlatnessMonitor,
        NoiseCovarianceAnalyzer,
        SharpnessScorer,
    )
    from flatmin.comparison import compare_dynamics
    from flatmin.dynamics import DivergenceError
    from flatmin.estimators import NoisyDiffusionClassifier, NoisyDiffusionRegressor
    from flatmin.measures import expected_sharpness
    from flatmin.noise import METHODS, NoiseLaw, make_noise_law
    from flatmin.risk import EmpiricalRisk

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "CurvatureAnalyzer",
    "DivergenceError",
    "EmpiricalRisk",
    "FlatnessMonitor",
    "NoiseCovarianceAnalyzer",
    "NoiseLaw",
    "NoisyDiffusionClassifier",
    "NoisyDiffusionRegressor",
    "SharpnessScorer",
    "compare_dynamics",
    "expected_sharpness",
    "make_noise_law",
    "show_versions",
]

# Where each public name lies. Type checkers read the imports above instead.
_HOMES = {
    "METHODS": "noise",
    "CurvatureAnalyzer": "analysis",
    "DivergenceError": "dynamics",
    "EmpiricalRisk": "risk",
    "FlatnessMonitor": "analysis",
    "NoiseCovarianceAnalyzer": "analysis",
    "NoiseLaw": "noise",
    "NoisyDiffusionClassifier": "estimators",
    "NoisyDiffusionRegressor": "estimators",
    "SharpnessScorer": "analysis",
    "compare_dynamics": "comparison",
    "expected_sharpness": "measures",
    "make_noise_law": "noise",
    "show_versions": "_utils.versions",
}
_FLOORS = (
    *("analysis", "comparison", "curvature", "datasets", "dynamics", "estimators"),
    *("linalg", "measures", "modules", "noise", "plotting", "risk"),
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"flatmin.{_HOMES[name]}"), name)
    elif name in _FLOORS:
        value = import_module(f"flatmin.{name}")
    else:
        raise AttributeError(f"module 'flatmin' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FLOORS})
