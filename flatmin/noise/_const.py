"""Isotropic noise of constant size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatmin.linalg import ScaledIdentityOperator
from flatmin.noise._base import GaussianLaw
from flatmin.risk import Risk

__all__ = ["GLDConst"]


class GLDConst(GaussianLaw):
    """GLD const, C = σ² I: Langevin dynamics with a tuned σ, not trace-matched.

    Parameters
    ----------
    sigma : float, default=1e-3
        σ in gradient units; the paper's value for Fashion-MNIST.
    noise_scale : float, default=1.0
        Multiplies ε.

    References
    ----------
    Section 4.2, item 2 of arXiv 1803.00195.
    """

    name = "gld_const"

    def __init__(self, *, sigma: float = 1e-3, noise_scale: float = 1.0) -> None:
        self.sigma = sigma
        self.noise_scale = noise_scale

    def refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any = None
    ) -> ScaledIdentityOperator:
        """See :meth:`NoiseLaw.refresh`."""
        variance = (self.noise_scale * self.sigma) ** 2
        scale = theta.new_full(theta.shape[:-1], variance)
        return ScaledIdentityOperator(scale, risk.n_params)
