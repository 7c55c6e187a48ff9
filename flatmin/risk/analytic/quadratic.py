"""A quadratic risk, with gradients whose covariance is chosen."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating
from flatmin.risk.analytic.analytic_risk import AnalyticRisk

__all__ = ["QuadraticRisk"]


class QuadraticRisk(AnalyticRisk):
    """ℓᵢ(θ) = ½ (θ - θ*)ᵀ A (θ - θ*) + bᵢᵀ(θ - θ*) with Σ bᵢ = 0.

    H = A everywhere and Σ = (1/N) Σ bᵢbᵢᵀ everywhere. G = A, so the Gauss-Newton
    words need a positive semi-definite A.

    Parameters
    ----------
    matrix : Tensor of shape (D, D)
        A, symmetric.
    slopes : Tensor of shape (N, D)
        bᵢ; centred here.
    minimum : Tensor of shape (D,), default=None
        θ*; None is 0.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([4.0, 1.0]))
    >>> risk = QuadraticRisk(A, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> risk.gradient(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    tensor([[4., 2.],
            [0., 1.]])
    >>> risk.gradient_covariance(torch.zeros(2))
    tensor([[1., 0.],
            [0., 0.]])
    """

    def __init__(
        self, matrix: Tensor, slopes: Tensor, minimum: Tensor | None = None
    ) -> None:
        check_floating("matrix", matrix, 2)
        check_floating("slopes", slopes, 2)
        D = slopes.shape[-1]
        if slopes.ndim != 2 or matrix.shape != (D, D) or not len(slopes):
            raise ValueError(
                "matrix and slopes must have shapes (D, D) and (N, D). Got "
                f"{tuple(matrix.shape)} and {tuple(slopes.shape)}."
            )
        if minimum is not None:
            check_floating("minimum", minimum, 1)
            if minimum.shape != (D,):
                raise ValueError(
                    f"minimum must have shape ({D},). Got {tuple(minimum.shape)}."
                )
        self.matrix = (matrix + matrix.mT) / 2
        self.slopes = slopes - slopes.mean(0)
        self.minimum = torch.zeros_like(slopes[0]) if minimum is None else minimum
        self.n_examples, self.n_params = slopes.shape
        self.dtype, self.device = slopes.dtype, slopes.device

    def example_losses(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_losses`."""
        self._check(theta)
        delta = theta - self.minimum
        quadratic = ((delta @ self.matrix) * delta).sum(-1, keepdim=True) / 2
        return quadratic + delta @ self.slopes.mT

    def example_gradients(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_gradients`."""
        self._check(theta)
        mean = (theta - self.minimum) @ self.matrix
        return mean.unsqueeze(-2) + self.slopes

    def hessian(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.hessian`."""
        self._check(theta)
        return self.matrix.expand(*theta.shape[:-1], -1, -1)

    def gauss_newton_roots(self, theta: Tensor) -> Tensor:
        """Return √Λ Uᵀ of A = UΛUᵀ.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, D, D)

        Raises
        ------
        ValueError
            If A is indefinite.
        """
        self._check(theta)
        return self._roots.expand(*theta.shape[:-1], -1, -1)

    @cached_property
    def _roots(self) -> Tensor:
        values, vectors = torch.linalg.eigh(self.matrix)
        if bool(values[0] < -1e-6 * values.abs().max()):
            raise ValueError(
                "The Gauss-Newton matrix needs a positive semi-definite A. "
                f"Got the eigenvalue {float(values[0]):.3g}."
            )
        roots: Tensor = values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.mT
        return roots
