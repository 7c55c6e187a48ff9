"""Σ, the per-example gradient covariance, its trace and its diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg import LinearOperator
from flatmin.risk import Risk

__all__ = ["GradientCovarianceOperator", "covariance_diagonal", "covariance_trace"]


class GradientCovarianceOperator(LinearOperator):
    """Σ = (1/N) Σᵢ (gᵢ - g₀)(gᵢ - g₀)ᵀ at one θ, known by its products.

    Σv is the gradient weighted by gᵢᵀv - g₀ᵀv: no per-example gradient is formed.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*batch, D)
    centered : bool, default=True
        False gives the uncentred (1/N) Σ gᵢgᵢᵀ, the empirical Fisher matrix.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> GradientCovarianceOperator(risk, torch.zeros(2)).to_dense()
    tensor([[1., 0.],
            [0., 0.]])
    """

    def __init__(self, risk: Risk, theta: Tensor, *, centered: bool = True) -> None:
        super().__init__(
            risk.n_params,
            batch_shape=tuple(theta.shape[:-1]),
            dtype=risk.dtype,
            device=risk.device,
        )
        self.risk = risk
        self.theta = theta.detach().clone()
        self.centered = centered
        self._point = risk.linearize(self.theta)

    def _matvec(self, v: Tensor) -> Tensor:
        slopes = self._point.directional_derivatives(v)
        if self.centered:
            slopes = slopes - slopes.mean(-1, keepdim=True)
        return self.risk.weighted_gradient(self.theta, slopes)

    def to_dense(self) -> Tensor:
        """See :meth:`LinearOperator.to_dense`; one sweep of per-example gradients."""
        rows = torch.cat(
            [part.double() for part in self.risk.per_example_gradients(self.theta)],
            dim=-2,
        )
        if self.centered:
            rows = rows - rows.mean(-2, keepdim=True)
        return (rows.mT @ rows / self.risk.n_examples).to(self.dtype)

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`; one sweep of per-example norms."""
        if self.centered:
            return covariance_trace(self.risk, self.theta)
        return self.risk.squared_norms(self.theta).mean(-1).to(self.dtype)


def covariance_trace(risk: Risk, theta: Tensor) -> Tensor:
    """Return Tr(Σ) = (1/N) Σ‖gᵢ - g₀‖², by one sweep over the examples.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*batch, D)

    Returns
    -------
    Tensor of shape (\\*batch)
    """
    return risk.gradient_variances(theta).sum(-1).to(risk.dtype)


def covariance_diagonal(risk: Risk, theta: Tensor) -> Tensor:
    """Return diag(Σ) = (1/N) Σ (gᵢ - g₀)², by one sweep over the examples.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*batch, D)

    Returns
    -------
    Tensor of shape (\\*batch, D)
    """
    return risk.gradient_variances(theta).to(risk.dtype)
