"""The Fisher matrix: exact, from labels that the model draws, and at the true ones."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin._utils.numbers import check_count
from flatmin._utils.random import make_generator
from flatmin.curvature._covariance import GradientCovarianceOperator
from flatmin.curvature._point import Point
from flatmin.curvature._risk_operator import LinearizedOperator
from flatmin.risk import EmpiricalRisk, Risk

__all__ = ["EmpiricalFisherOperator", "FisherOperator"]


class FisherOperator(LinearizedOperator):
    """F = (1/N) Σ Jᵢᵀ E[sᵢsᵢᵀ] Jᵢ, with slopes sᵢ at labels that the model draws.

    The losses by name are negative log-likelihoods of exponential families, for which
    the exact F is the generalised Gauss-Newton matrix G [1]_. So sᵢ has the scale that
    makes E[sᵢsᵢᵀ] = Hᵢ, the Hessian of ℓ̃ᵢ in the output. Without weights, and with one
    output, that is sᵢ = ∂ℓᵢ/∂fᵢ. With a weight wᵢ it is √wᵢ ∂ℓᵢ/∂fᵢ, not wᵢ ∂ℓᵢ/∂fᵢ,
    and where ℓᵢ is a mean over C outputs or T positions it is scaled alike. A penalty
    (λ/2)‖θ‖² of the risk is a prior, no likelihood: F = G - λI holds none of it.

    Parameters
    ----------
    risk : EmpiricalRisk
        With a loss by name.
    theta : Tensor or ndarray of shape (D,)
    select : str or list of str, default=None
        See :class:`RiskOperator`.
    n_samples : int, default=None
        Labels drawn for each example, once, here; None takes the expectation.
    n_products : int, default=None
        How many will be asked for, if that is known; see ``linearize`` of the risk.
    rng : torch.Generator, int or None, default=None
        For the labels; None is random.

    Raises
    ------
    TypeError
        If the loss is no likelihood.
    ValueError
        If ``n_samples`` is less than 1.

    References
    ----------
    .. [1] J. Martens, "New insights and perspectives on the natural gradient method",
       JMLR 2020, section 9.

    Examples
    --------
    >>> from torch import nn
    >>> X, y = torch.tensor([[1.0], [3.0]]), torch.zeros(2)
    >>> risk = EmpiricalRisk(nn.Linear(1, 1, bias=False), "squared_error", X, y)
    >>> FisherOperator(risk, torch.ones(1)) @ torch.ones(1)
    tensor([10.])
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        theta: Point,
        *,
        select: str | list[str] | None = None,
        n_samples: int | None = None,
        n_products: int | None = None,
        rng: torch.Generator | int | None = None,
    ) -> None:
        super().__init__(risk, theta, select=select, n_products=n_products)
        if n_samples is not None:
            n_samples = check_count("n_samples", n_samples)
        self.n_samples = n_samples
        risk.check_likelihood()
        generator = make_generator(rng, risk.device)
        self._slopes = [
            risk.model_slopes(self.theta, generator) for _ in range(n_samples or 0)
        ]

    def _product(self, v: Tensor) -> Tensor:
        if self.n_samples is None:
            product: Tensor = self._point.fisher(v)
            return product
        Jv = self._point.jvp(v)
        pulled = torch.zeros_like(Jv)
        for slopes in self._slopes:
            of_example = Jv.shape[: self.theta.ndim]  # (*chains, N)
            along = (slopes * Jv).reshape(*of_example, -1).sum(-1)
            ones = (1 for _ in Jv.shape[len(of_example) :])
            pulled += slopes * along.view(*of_example, *ones)
        product = self._point.vjp(pulled)
        return product / (self.risk.n_examples * self.n_samples)


class EmpiricalFisherOperator(GradientCovarianceOperator):
    """(1/N) Σ gᵢgᵢᵀ: the uncentred second moment of the gradients, at the true labels.

    Not the Fisher matrix, whose labels the model draws. The gᵢ hold no penalty.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    select : str or list of str, default=None
        See :class:`RiskOperator`.

    Examples
    --------
    >>> from flatmin.risk import LinearRegressionRisk
    >>> risk = LinearRegressionRisk(torch.tensor([[1.0], [3.0]]), torch.zeros(2))
    >>> EmpiricalFisherOperator(risk, torch.ones(1)).to_dense()  # (2² + 18²) / 2
    tensor([[164.]])
    """

    def __init__(
        self, risk: Risk, theta: Point, *, select: str | list[str] | None = None
    ) -> None:
        super().__init__(risk, theta, centered=False, select=select)
