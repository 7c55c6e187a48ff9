"""What the laws that use eigenpairs of H share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flatmin.curvature import covariance_trace, hessian_eigenpairs
from flatmin.linalg import Eigenpairs, LinearOperator, LowRankOperator, Which
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedGaussianLaw
from flatmin.risk import Risk

__all__ = ["HessianSpectrumLaw"]


class HessianSpectrumLaw(MatchedGaussianLaw):
    """C = σ² Σ_{i≤k} μᵢ dᵢdᵢᵀ, with μ and d from the leading eigenpairs of H.

    A subclass says which directions go with which magnitudes. σ² matches the trace of
    SGD's noise, σ² Σ μᵢ = Tr(Σ)/m; C is 0 where H is.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    n_components : int, default=None
        k; None is min(20, D).
    match : {"trace", "none", "curvature", "frobenius"}, default="trace"
        "none" is the magnitudes of H as they come, σ = 1;
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=10
        Iterations between two eigendecompositions; noise is drawn at every one.
    tol : float, default=1e-2
        Residual ‖Hu - λu‖ relative to max |λ|.
    """

    which: Which = "LM"
    _matched_by_refresh: ClassVar[tuple[str, ...]] = ("trace", "none")
    n_components: int | Literal["full"] | None

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        n_components: int | None = None,
        match: Literal["trace", "none", "curvature", "frobenius"] = "trace",
        match_every: int = DEFAULT_MATCH_EVERY,
        refresh_every: int = 10,
        tol: float = 1e-2,
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.n_components = n_components
        self.match = match
        self.match_every = match_every
        self.refresh_every = refresh_every
        self.tol = tol

    def _refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any
    ) -> LinearOperator:
        return self._low_rank(risk, theta, rng)

    def _low_rank(
        self, risk: Risk, theta: Tensor, rng: torch.Generator
    ) -> LowRankOperator:
        pairs = hessian_eigenpairs(
            risk,
            theta,
            self._n_components(risk),
            which=self.which,
            tol=self.tol,
            rng=rng,
        )
        magnitudes, directions = self._magnitudes_and_directions(pairs)
        variance = (
            self._variance(risk, theta, magnitudes, rng) * float(self.noise_scale) ** 2
        )
        return LowRankOperator(variance.unsqueeze(-1) * magnitudes, directions)

    def _magnitudes_and_directions(self, pairs: Eigenpairs) -> tuple[Tensor, Tensor]:
        """Return μ of shape (\\*chains, k) and d of shape (\\*chains, D, k)."""
        return pairs.eigenvalues.abs(), pairs.eigenvectors

    def _variance(
        self, risk: Risk, theta: Tensor, magnitudes: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Return σ² of shape (\\*chains) in float64."""
        if self.match == "none":
            return torch.ones_like(magnitudes[..., 0])
        target = covariance_trace(risk, theta, check=False).double() / self._batch_size(
            risk
        )
        total = magnitudes.sum(-1)
        return torch.where(total > 0, target / total, 0)
