"""What users analyse a fitted model with: curvature, gradient noise, sharpness."""

from flatmin.analysis._curvature import CurvatureAnalyzer
from flatmin.analysis._noise_covariance import NoiseCovarianceAnalyzer
from flatmin.analysis._results import (
    AlignmentResult,
    DensityResult,
    DiagonalResult,
    EigenResult,
    TraceResult,
)
from flatmin.analysis._sharpness_scorer import SharpnessScorer

__all__ = [
    "AlignmentResult",
    "CurvatureAnalyzer",
    "DensityResult",
    "DiagonalResult",
    "EigenResult",
    "NoiseCovarianceAnalyzer",
    "SharpnessScorer",
    "TraceResult",
]
