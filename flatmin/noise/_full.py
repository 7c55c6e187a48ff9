"""SGD's covariance exactly, Gaussian, for the price of a gradient."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import GradientCovarianceOperator
from flatmin.linalg import LinearOperator
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedLaw
from flatmin.risk import Risk

__all__ = ["GLDFull", "standard_normal_weights"]


class GLDFull(MatchedLaw):
    """GLD full, C = Σ/m: the Gaussian with the whole covariance of SGD's noise.

    With z ~ N(0, I_N) and z̄ its mean, the gradient weighted by
    1 + √(N/m) (zᵢ - z̄) is g₀ + ε with ε ~ N(0, Σ/m) exactly: its covariance is
    (N/m)(1/N²) Σ (gᵢ - g₀)(gᵢ - g₀)ᵀ. One backward pass, at any model size.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none", "curvature", "frobenius"}, default="trace"
        Of no effect: C is Σ/m, whose trace and other sizes are SGD's.
    match_every : int, default=50
        Of no effect here; what other laws need for the last two.

    References
    ----------
    Equation 2 of arXiv 1803.00195; J. Wu et al., "On the noisy gradient descent that
    generalizes as SGD", ICML 2020, arXiv 1906.07405, for the weighted loss.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import GLDFull
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDFull(batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[ 5.,  5.],
            [ 5., 10.]])
    """

    name = "gld_full"
    _made_of_examples = True
    _matched_by_refresh = ("trace", "none", "curvature", "frobenius")

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature", "frobenius"] = "trace",
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
        z -= z.mean(-1, keepdim=True)
        scale = (
            float(self.noise_scale) * (risk.n_examples / self._batch_size(risk)) ** 0.5
        )
        if factor is not None:
            z *= factor.unsqueeze(-1)
        return risk.value_and_noisy_gradient(theta, z.mul_(scale))

    def _covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        factor = float(self.noise_scale) ** 2 / self._batch_size(risk)
        return factor * GradientCovarianceOperator(risk, theta)


def standard_normal_weights(risk: Risk, theta: Tensor, rng: torch.Generator) -> Tensor:
    """Draw one standard normal number for each example of each chain.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*chains, D)
    rng : torch.Generator

    Returns
    -------
    Tensor of shape (\\*chains, N)
    """
    shape = (*theta.shape[:-1], risk.n_examples)
    return torch.randn(shape, generator=rng, dtype=risk.dtype, device=risk.device)
