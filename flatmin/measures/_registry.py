"""The sharpness measures by name."""

from __future__ import annotations

from collections.abc import Callable

from flatmin.linalg import Estimate
from flatmin.measures._ascent_sharpness import asam_sharpness, sam_sharpness
from flatmin.measures._curvature_sharpness import max_eigenvalue, trace_sharpness
from flatmin.measures._fisher_rao import fisher_rao_norm
from flatmin.measures._sharpness import adaptive_expected_sharpness, expected_sharpness

__all__ = ["SHARPNESS_MEASURES"]

# Each is a function (risk, theta, **options); small is flat. A new measure is one
# function in a file of its own and one line here.
SHARPNESS_MEASURES: dict[str, Callable[..., Estimate]] = {
    "expected": expected_sharpness,
    "trace": trace_sharpness,
    "max_eigenvalue": max_eigenvalue,
    "sam": sam_sharpness,
    "asam": asam_sharpness,
    "adaptive_expected": adaptive_expected_sharpness,
    "fisher_rao": fisher_rao_norm,
}
