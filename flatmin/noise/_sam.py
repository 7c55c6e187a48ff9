"""Sharpness-aware minimisation: no noise, but the gradient at a worse point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatmin._utils.numbers import check_positive
from flatmin.linalg import LinearOperator
from flatmin.noise._base import NoiseLaw
from flatmin.noise._gd import zero_covariance
from flatmin.risk import Risk

__all__ = ["SAM"]


class SAM(NoiseLaw):
    """SAM, θ ← θ - η ∇L(θ + ρ g₀/‖g₀‖), C = 0: deterministic.

    Not noise: the mean of its gradient is not g₀, but the gradient at the worst point
    of a ball around θ, to first order. On all examples, not on minibatches. Where
    g₀ = 0 it is 0.

    Parameters
    ----------
    rho : float, default=0.05
        ρ, a distance in parameters.

    References
    ----------
    P. Foret et al., "Sharpness-aware minimization for efficiently improving
    generalization", ICLR 2021, arXiv 2010.01412.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import SAM
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.eye(1), torch.ones(2, 1))
    >>> SAM(rho=0.5).noisy_gradient(risk, torch.tensor([3.0]), None, torch.Generator())
    (tensor(4.5000), tensor([3.5000]))
    """

    name = "sam"
    unbiased = False

    def __init__(self, *, rho: float = 0.05) -> None:
        self.rho = rho

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        check_positive("rho of sam", self.rho, or_zero=True)
        self._check_held("rho", self.rho, risk)

    def noisy_gradient(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`NoiseLaw.noisy_gradient`; the loss is L(θ)."""
        loss, gradient = risk.value_and_gradient(theta)
        # In float64: squares of single precision overflow at 1e19.
        wide = gradient.double()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        direction = torch.where(length > 0, wide / length, 0)
        return loss, risk.gradient(theta + (float(self.rho) * direction).to(theta))

    def covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """See :meth:`NoiseLaw.covariance`."""
        return zero_covariance(risk, theta)
