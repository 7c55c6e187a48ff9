"""Alignment, gradient noise, sharpness and stability: pure functions of (risk, θ)."""

from flatmin.measures._alignment import Alignment, alignment
from flatmin.measures._ascent_sharpness import asam_sharpness, sam_sharpness
from flatmin.measures._curvature_sharpness import max_eigenvalue, trace_sharpness
from flatmin.measures._estimate import Estimate
from flatmin.measures._fisher_rao import fisher_rao_norm
from flatmin.measures._registry import SHARPNESS_MEASURES
from flatmin.measures._sharpness import adaptive_expected_sharpness, expected_sharpness
from flatmin.measures._sharpness_result import SharpnessResult
from flatmin.measures._subspaces import (
    cosines,
    overlap,
    principal_angles,
    projection_residual,
    random_projection_residual,
    subspace_share,
)
from flatmin.measures._trace_product import TraceProduct, trace_hessian_covariance

__all__ = [
    "SHARPNESS_MEASURES",
    "Alignment",
    "Estimate",
    "SharpnessResult",
    "TraceProduct",
    "adaptive_expected_sharpness",
    "alignment",
    "asam_sharpness",
    "cosines",
    "expected_sharpness",
    "fisher_rao_norm",
    "max_eigenvalue",
    "overlap",
    "principal_angles",
    "projection_residual",
    "random_projection_residual",
    "sam_sharpness",
    "subspace_share",
    "trace_hessian_covariance",
    "trace_sharpness",
]
