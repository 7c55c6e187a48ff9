"""Gaussian noise with the uncentred second moment of the gradients."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import GradientCovarianceOperator
from flatmin.linalg import Estimate, LinearOperator
from flatmin.noise._full import standard_normal_weights
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedLaw
from flatmin.risk import Risk

__all__ = ["GLDFisher"]


class GLDFisher(MatchedLaw):
    """GLD Fisher, C = (1/m)(1/N) Σ gᵢgᵢᵀ: uncentred, its trace as it comes.

    One gradient weighted by 1 + √(N/m) zᵢ, z ~ N(0, I_N).

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none", "curvature", "frobenius"}, default="none"
        "none" is the trace as it comes;
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.

    References
    ----------
    J. Wu et al., "On the noisy gradient descent that generalizes as SGD", ICML 2020,
    arXiv 1906.07405.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import GLDFisher
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDFisher(batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[ 5.,  5.],
            [ 5., 10.]])
    """

    name = "gld_fisher"
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

    def _noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: Any,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        z = standard_normal_weights(risk, theta, rng)
        scale = (
            float(self.noise_scale) * (risk.n_examples / self._batch_size(risk)) ** 0.5
        )
        if factor is not None:
            z *= factor.unsqueeze(-1)
        return risk.value_and_noisy_gradient(theta, scale * z)

    def _covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        factor = float(self.noise_scale) ** 2 / self._batch_size(risk)
        return factor * GradientCovarianceOperator(risk, theta, centered=False)

    def _unchecked_trace(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> Estimate:
        squares = risk.squared_gradient_sum(theta).sum(-1) / risk.n_examples
        factor = float(self.noise_scale) ** 2 / self._batch_size(risk)
        value = (factor * squares).to(risk.dtype)
        return Estimate(value, torch.zeros_like(value))
