"""Minibatches of random size: each example by a coin of its own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import GradientCovarianceOperator
from flatmin.linalg import Estimate, LinearOperator
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedLaw
from flatmin.risk import Risk

__all__ = ["Bernoulli"]


class Bernoulli(MatchedLaw):
    """Bernoulli inclusion, C = (1 - m/N)/m · (1/N) Σ gᵢgᵢᵀ: uncentred.

    Each example is in the batch with probability m/N, independently, and the gradient
    is (1/m) Σ bᵢgᵢ, divided by the expected size m, so that its mean is g₀. Its
    covariance is (1/m²)(m/N)(1 - m/N) Σ gᵢgᵢᵀ: that of ``gld_fisher`` but for a
    factor, by sums of coins instead of a Gaussian. The batch's random size adds
    noise along g₀ to that of SGD: an empty batch has the gradient 0.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none", "curvature", "frobenius"}, default="none"
        "none" is the size as it comes.
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.

    References
    ----------
    J. Wu et al., "On the noisy gradient descent that generalizes as SGD", ICML 2020,
    arXiv 1906.07405, for noise as random weights of the examples; the covariance is
    derived above.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import Bernoulli
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = Bernoulli(batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[3.7500, 3.7500],
            [3.7500, 7.5000]])
    """

    name = "bernoulli"
    _made_of_examples = True

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature", "frobenius"] = "none",
        match_every: int = DEFAULT_MATCH_EVERY,
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.match_every = match_every

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        m, n = self._batch_size(risk), risk.n_examples
        if m > n:
            raise ValueError(
                f"batch_size of bernoulli must be at most the number of examples, {n}: "
                f"m/N is a probability. Got {m}; use a smaller batch."
            )
        if m == n and self.match != "none":
            raise ValueError(
                f"match={self.match!r} of bernoulli needs noise, and a batch of all "
                f"{n} examples has none. Use a smaller batch_size, or match='none'."
            )

    def _noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: Any,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        # The sweep passes all examples anyway, so the loss is that of all.
        n, m = risk.n_examples, self._batch_size(risk)
        coins = torch.rand((*theta.shape[:-1], n), generator=rng, device=risk.device)
        weights = (coins < m / n).to(risk.dtype) * (n / m) - 1
        weights *= float(self.noise_scale)
        if factor is not None:
            weights *= factor.unsqueeze(-1)
        return risk.value_and_noisy_gradient(theta, weights)

    def _covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        return self._scale(risk) * GradientCovarianceOperator(
            risk, theta, centered=False
        )

    def _unchecked_trace(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> Estimate:
        squares = risk.squared_gradient_sum(theta).sum(-1) / risk.n_examples
        value = (self._scale(risk) * squares).to(risk.dtype)
        return Estimate(value, torch.zeros_like(value))

    def _scale(self, risk: Risk) -> float:
        m = self._batch_size(risk)
        return float(self.noise_scale) ** 2 * (1 - m / risk.n_examples) / m
