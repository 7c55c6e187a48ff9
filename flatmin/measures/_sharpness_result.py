"""What every measure of sharpness returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["SharpnessResult"]


@dataclass(frozen=True)
class SharpnessResult:
    """A sharpness, its random error and what it cost.

    Usable as a number: ``float(result)``. Where nothing is drawn ``stderr`` is 0: the
    value is then exact, or a solver's to its tolerance. Where losses are subtracted
    ``stderr`` holds the rounding of L(θ) as well.
    """

    value: Tensor  # (*batch), float64
    stderr: Tensor  # (*batch), float64, ddof 1
    n_draws: int  # random perturbations that it is the mean of, or 0
    n_matvecs: int = 0  # products with a curvature matrix

    def __float__(self) -> float:
        return float(self.value)
