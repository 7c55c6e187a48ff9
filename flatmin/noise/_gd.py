"""No noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatmin.linalg import LinearOperator, ScaledIdentityOperator
from flatmin.noise._base import NoiseLaw
from flatmin.risk import Risk

__all__ = ["GD", "zero_covariance"]


class GD(NoiseLaw):
    """Gradient descent, C = 0: θ ← θ - η g₀.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.eye(1), torch.ones(2, 1))
    >>> law, rng = GD(), torch.Generator()
    >>> law.noisy_gradient(risk, torch.tensor([3.0]), None, rng)
    (tensor(4.5000), tensor([3.]))
    """

    name = "gd"

    def noisy_gradient(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`NoiseLaw.noisy_gradient`."""
        return risk.value_and_gradient(theta)

    def covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """See :meth:`NoiseLaw.covariance`."""
        return zero_covariance(risk, theta)


def zero_covariance(risk: Risk, theta: Tensor) -> LinearOperator:
    """Return the covariance of a law without noise.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*chains, D)

    Returns
    -------
    LinearOperator
    """
    return ScaledIdentityOperator(theta.new_zeros(theta.shape[:-1]), risk.n_params)
