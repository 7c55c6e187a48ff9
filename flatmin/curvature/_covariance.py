"""Σ, the per-example gradient covariance, its trace and its diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.curvature._finite import check_finite, in_dtype
from flatmin.curvature._risk_operator import RiskOperator
from flatmin.risk import Risk

__all__ = ["GradientCovarianceOperator", "covariance_diagonal", "covariance_trace"]


class GradientCovarianceOperator(RiskOperator):
    """Σ = (1/N) Σᵢ (gᵢ - g₀)(gᵢ - g₀)ᵀ at one θ, known by its products.

    Σv is the gradient weighted by gᵢᵀv - g₀ᵀv: no per-example gradient is formed.
    With ``batches`` the gradients are those of minibatches.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*batch, D)
    centered : bool, default=True
        False gives the uncentred (1/N) Σ gᵢgᵢᵀ, the empirical Fisher matrix.
    batches : Tensor of shape (b, m), default=None
        Indices of examples: the matrix is then the covariance of the b minibatch
        gradients, with ddof 1 as in appendix C of the paper (uncentred: divisor b).
        Times m it estimates N/(N - 1) Σ for a random partition.
    params : str or list of str, default=None
        See :class:`RiskOperator`.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> GradientCovarianceOperator(risk, torch.zeros(2)).to_dense()
    tensor([[1., 0.],
            [0., 0.]])
    """

    def __init__(
        self,
        risk: Risk,
        theta: Tensor,
        *,
        centered: bool = True,
        batches: Tensor | None = None,
        params: str | list[str] | None = None,
    ) -> None:
        super().__init__(risk, theta, params=params)
        self.centered = centered
        if batches is not None and (batches.ndim != 2 or len(batches) < 2):
            raise ValueError(
                "batches must be indices of shape (b, m) with at least two batches. "
                f"Got shape {tuple(batches.shape)}."
            )
        self.batches = batches
        self._point = risk.linearize(self.theta)

    def _product(self, v: Tensor) -> Tensor:
        slopes = self._point.directional_derivatives(v)
        if self.batches is None:
            if self.centered:
                slopes = slopes - slopes.mean(-1, keepdim=True)
            return self.risk.weighted_gradient(self.theta, slopes)
        b, m = self.batches.shape
        means = slopes[self.batches].mean(-1)
        if self.centered:
            means = means - means.mean()
        # Each batch hands its slope on to its examples, which may be in several.
        shares = (means / m).repeat_interleave(m)
        weights = torch.zeros_like(slopes).index_add_(0, self.batches.flatten(), shares)
        divisor = b - 1 if self.centered else b
        return self.risk.weighted_gradient(
            self.theta, weights * (self.risk.n_examples / divisor)
        )

    def to_dense(self) -> Tensor:
        """See :meth:`LinearOperator.to_dense`; one sweep of per-example gradients."""
        rows = torch.cat(
            [part.double() for part in self.risk.per_example_gradients(self.theta)],
            dim=-2,
        )
        if self.batches is not None:
            rows = rows[self.batches].mean(1)
        if self.indices is not None:
            rows = rows[..., self.indices]
        check_finite("A gradient gᵢ", rows, self.risk, self.indices)
        divisor = rows.shape[-2] - int(self.centered and self.batches is not None)
        if self.centered:
            rows = rows - rows.mean(-2, keepdim=True)
        return (rows.mT @ rows / divisor).to(self.dtype)

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`; one sweep of per-example squares."""
        if self.batches is not None:
            return super().trace()
        if self.centered:
            squares = self.risk.gradient_variances(self.theta)
        else:
            squares = self.risk.squared_gradient_sum(self.theta) / self.risk.n_examples
        if self.indices is not None:
            squares = squares[..., self.indices]
        check_finite("The diagonal of Σ", squares, self.risk, self.indices)
        return in_dtype("Tr(Σ)", squares.sum(-1), self.dtype)


def covariance_trace(risk: Risk, theta: Tensor, *, check: bool = True) -> Tensor:
    """Return Tr(Σ) = (1/N) Σ‖gᵢ - g₀‖², by one sweep over the examples.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*batch, D)
    check : bool, default=True
        False hands on what is not finite: a look at it waits for the device.

    Returns
    -------
    Tensor of shape (\\*batch)

    Raises
    ------
    FloatingPointError
        If a variance is not finite and ``check``; the message names the parameters.
    """
    variances = risk.gradient_variances(theta)
    if not check:
        return variances.sum(-1).to(risk.dtype)
    variances = check_finite("The diagonal of Σ", variances, risk)
    return in_dtype("Tr(Σ)", variances.sum(-1), risk.dtype)


def covariance_diagonal(risk: Risk, theta: Tensor) -> Tensor:
    """Return diag(Σ) = (1/N) Σ (gᵢ - g₀)², by one sweep over the examples.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*batch, D)

    Returns
    -------
    Tensor of shape (\\*batch, D)

    Raises
    ------
    FloatingPointError
        If a variance is not finite; the message names the parameters.
    """
    variances = risk.gradient_variances(theta).to(risk.dtype)
    return check_finite("The diagonal of Σ", variances, risk)
