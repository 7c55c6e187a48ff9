"""flatmin: the shape of gradient noise, and the flatness of the minima it finds."""

import flatmin.plotting  # noqa: F401, by which results draw themselves
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
