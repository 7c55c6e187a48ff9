"""Pure functions of (risk, θ)."""

from flatmin.measures._sharpness import SharpnessResult, expected_sharpness

__all__ = ["SharpnessResult", "expected_sharpness"]
