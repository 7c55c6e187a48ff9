"""What users analyse with: curvature, gradient noise and sharpness of a fitted model."""

from flatmin.analysis._curvature import CurvatureAnalyzer
from flatmin.analysis._noise_covariance import NoiseCovarianceAnalyzer
from flatmin.analysis._results import (
    DensityResult,
    DiagonalResult,
    EigenResult,
    TraceResult,
)

__all__ = [
    "CurvatureAnalyzer",
    "DensityResult",
    "DiagonalResult",
    "EigenResult",
    "NoiseCovarianceAnalyzer",
    "TraceResult",
]
