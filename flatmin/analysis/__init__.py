"""What users analyse a fitted model with: curvature, gradient noise, sharpness."""

from flatmin.analysis._cost import Cost
from flatmin.analysis._curvature import CurvatureAnalyzer
from flatmin.analysis._monitor import FlatnessMonitor
from flatmin.analysis._noise_covariance import NoiseCovarianceAnalyzer
from flatmin.analysis._results import (
    Alignment,
    Diagonal,
    Eigenpairs,
    Trace,
)
from flatmin.analysis._sampling import Sampling
from flatmin.analysis._sharpness_scorer import SharpnessScorer
from flatmin.analysis._spectral_density import SpectralDensity

__all__ = [
    "Alignment",
    "Cost",
    "CurvatureAnalyzer",
    "Diagonal",
    "Eigenpairs",
    "FlatnessMonitor",
    "NoiseCovarianceAnalyzer",
    "Sampling",
    "SharpnessScorer",
    "SpectralDensity",
    "Trace",
]
