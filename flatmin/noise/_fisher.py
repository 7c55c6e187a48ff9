"""Gaussian noise with the uncentred second moment of the gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatmin.curvature import GradientCovarianceOperator
from flatmin.linalg import LinearOperator
from flatmin.noise._base import NoiseLaw
from flatmin.noise._full import standard_normal_weights
from flatmin.risk import Risk

__all__ = ["GLDFisher"]


class GLDFisher(NoiseLaw):
    """GLD Fisher, C = (1/m)(1/N) Σ gᵢgᵢᵀ: uncentred, its trace as it comes.

    One gradient weighted by 1 + √(N/m) zᵢ, z ~ N(0, I_N).

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.

    References
    ----------
    J. Wu et al., "On the noisy gradient descent that generalizes as SGD", ICML 2020,
    arXiv 1906.07405.
    """

    name = "gld_fisher"

    def __init__(
        self, *, batch_size: int | None = None, noise_scale: float = 1.0
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale

    def noisy_gradient(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`NoiseLaw.noisy_gradient`."""
        z = standard_normal_weights(risk, theta, rng)
        scale = self.noise_scale * (risk.n_examples / self._batch_size(risk)) ** 0.5
        return risk.value_and_weighted_gradient(theta, 1 + scale * z)

    def covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """See :meth:`NoiseLaw.covariance`."""
        factor = self.noise_scale**2 / self._batch_size(risk)
        return factor * GradientCovarianceOperator(risk, theta, centered=False)
