"""The risk of linear regression, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating, check_tensor
from flatmin._utils.random import check_rng
from flatmin.risk.analytic.analytic_risk import AnalyticRisk, DenseLinearization
from flatmin.risk.label_noise import LabelDraw, check_draw

__all__ = ["LinearRegressionRisk"]


class LinearRegressionRisk(AnalyticRisk):
    """ℓᵢ(θ) = (xᵢᵀθ - yᵢ)².

    H = G = (2/N) XᵀX; gᵢ = 2 (xᵢᵀθ - yᵢ) xᵢ.

    Parameters
    ----------
    X : Tensor of shape (N, D)
    y : Tensor of shape (N,)

    Examples
    --------
    >>> risk = LinearRegressionRisk(torch.tensor([[1.0], [3.0]]), torch.zeros(2))
    >>> risk.value(torch.tensor([2.0])), risk.hessian(torch.tensor([2.0]))
    (tensor(20.), tensor([[10.]]))
    """

    def __init__(self, X: Tensor, y: Tensor) -> None:
        check_floating("X", X, 2)
        check_floating("y", y, 1)
        if X.ndim != 2 or y.shape != X.shape[:1] or not len(X):
            raise ValueError(
                "X and y must have shapes (N, D) and (N,). Got "
                f"{tuple(X.shape)} and {tuple(y.shape)}."
            )
        self.X, self.y = X, y
        self.n_examples, self.n_params = X.shape
        self.dtype, self.device = X.dtype, X.device

    def example_losses(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_losses`."""
        self._check(theta)
        return (theta @ self.X.mT - self.y).square()

    def example_gradients(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_gradients`."""
        self._check(theta)
        return 2 * (theta @ self.X.mT - self.y).unsqueeze(-1) * self.X

    def hessian(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.hessian`."""
        self._check(theta)
        return self.gauss_newton(theta)

    def gauss_newton_roots(self, theta: Tensor) -> Tensor:
        """Return √(2/N) X.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, N, D)
        """
        self._check(theta)
        roots = self.X * math.sqrt(2 / self.n_examples)
        return roots.expand(*theta.shape[:-1], -1, -1)

    def check_label_noise(self) -> None:
        """Pass: y' = y + σ z is another y."""

    def value_and_label_draw(
        self, theta: Tensor, draw: LabelDraw, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ - (2σc/N) Xᵀz.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        draw : LabelDraw
        scale : Tensor of shape (\\*chains)
            c.
        rng : torch.Generator

        Returns
        -------
        value : Tensor of shape (\\*chains)
        gradient : Tensor of shape (\\*chains, D)
        """
        self._check(theta)
        check_draw(draw)
        check_tensor("scale", scale)
        check_rng(rng, self.device)
        shape = (*theta.shape[:-1], self.n_examples)
        z = torch.randn(shape, generator=rng, dtype=self.dtype, device=self.device)
        noise = z @ self.X * (-2 * draw.sigma / self.n_examples)
        value, gradient = self.value_and_gradient(theta)
        return value, gradient + scale.unsqueeze(-1) * noise

    def label_covariance_product(
        self, point: DenseLinearization, v: Tensor, draw: LabelDraw
    ) -> Tensor:
        """Return (2σ/N)² XᵀX v, shape (\\*chains, D)."""
        check_draw(draw)
        self._check_vector(v, v, self.n_params)
        factor = (2 * draw.sigma / self.n_examples) ** 2
        return v @ self.X.mT @ self.X * factor

    def label_traces(self, theta: Tensor, draw: LabelDraw) -> Tensor:
        """Return 4σ² ‖xᵢ‖² of each example, in float64, shape (\\*chains, N)."""
        self._check(theta)
        check_draw(draw)
        traces = 4 * draw.sigma**2 * self.X.double().square().sum(-1)
        return traces.expand(*theta.shape[:-1], -1)
