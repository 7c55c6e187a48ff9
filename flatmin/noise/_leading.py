"""Noise along the leading eigenvectors of Σ."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import (
    covariance_eigenpairs,
    covariance_trace,
    minibatch_eigenpairs,
)
from flatmin.linalg import Eigenpairs, LowRankOperator
from flatmin.noise._base import DEFAULT_BATCH_SIZE, DEFAULT_N_COMPONENTS
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedGaussianLaw
from flatmin.risk import Risk

__all__ = ["GLDLeading"]


class GLDLeading(MatchedGaussianLaw):
    """GLD leading, C = Σ_k/m with Σ_k = Σ_{l≤k} γₗ vₗvₗᵀ.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, ⌊N/2⌋).
    noise_scale : float, default=1.0
        Multiplies ε.
    n_components : int, default=None
        k; None is min(20, D), and at most ⌊N/m⌋ - 1 (N - 1 from examples).
    source : {"minibatches", "examples"}, default="minibatches"
        "minibatches" is the paper's appendix C: a random partition into ⌊N/m⌋
        batches, the ragged one dropped; their covariance with ddof 1, times m,
        estimates N/(N-1) Σ. "examples" takes Σ itself.
    match : {"trace", "none", "curvature", "frobenius"}, default="none"
        "trace" rescales C to Tr(Σ)/m;
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=1
        Iterations between two evaluations of Σ_k. A refresh draws its partition by
        one ``torch.rand(N).argsort()``.

    References
    ----------
    Equation 12 and appendix C of arXiv 1803.00195.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import GLDLeading
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDLeading(batch_size=1, n_components=1, source="examples")
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[3.6180, 5.8541],
            [5.8541, 9.4721]])
    """

    name = "gld_leading"
    _made_of_examples = True
    _matched_by_refresh = ("trace", "none")

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        n_components: int | None = None,
        source: Literal["minibatches", "examples"] = "minibatches",
        match: Literal["trace", "none", "curvature", "frobenius"] = "none",
        match_every: int = DEFAULT_MATCH_EVERY,
        refresh_every: int = 1,
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.n_components = n_components
        self.source = source
        self.match = match
        self.match_every = match_every
        self.refresh_every = refresh_every

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        self._check_option("source", ("minibatches", "examples"))
        n_rows, k = self._n_rows(risk), self.n_components
        what = "examples" if self.source == "examples" else "whole minibatches"
        if n_rows < 2:
            raise ValueError(
                f"gld_leading needs at least two {what} to have a covariance. Got "
                f"{n_rows} from {risk.n_examples} examples with batch_size="
                f"{self._batch_size(risk)}; use a smaller batch_size or "
                "source='examples'."
            )
        if k is not None and k >= n_rows:
            raise ValueError(
                f"n_components of gld_leading must be less than the number of {what}, "
                f"{n_rows}: their covariance has no higher rank. Got {k}; use fewer "
                "components or a smaller batch_size."
            )

    def _refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any
    ) -> LowRankOperator:
        m = self._batch_size(risk)
        pairs = self._eigenpairs(risk, theta, rng)
        variances = pairs.eigenvalues.clamp(min=0) / m
        if self.match == "trace":
            target = covariance_trace(risk, theta, check=False) / m
            total = variances.sum(-1)
            ratio = torch.where(total > 0, target / total, 0)
            variances = variances * ratio.unsqueeze(-1)
        return LowRankOperator(
            float(self.noise_scale) ** 2 * variances, pairs.eigenvectors
        )

    def _eigenpairs(
        self, risk: Risk, theta: Tensor, rng: torch.Generator
    ) -> Eigenpairs:
        k = self._n_components(risk)
        if self.source == "examples":
            return covariance_eigenpairs(risk, theta, k, tol=1e-2, rng=rng)
        m, n_batches = self._batch_size(risk), self._n_rows(risk)
        shape = (*theta.shape[:-1], risk.n_examples)
        order = torch.rand(shape, generator=rng, device=risk.device).argsort(dim=-1)
        batches = order[..., : n_batches * m].unflatten(-1, (n_batches, m))
        return minibatch_eigenpairs(risk, theta, k, batches=batches)

    def _batch_size(self, risk: Risk) -> int:
        if self.batch_size is None:
            return max(1, min(DEFAULT_BATCH_SIZE, risk.n_examples // 2))
        return int(self.batch_size)

    def _n_components(self, risk: Risk) -> int:
        if self.n_components is None:
            return min(DEFAULT_N_COMPONENTS, risk.n_params, self._n_rows(risk) - 1)
        return int(self.n_components)

    def _n_rows(self, risk: Risk) -> int:
        if self.source == "examples":
            return risk.n_examples
        return risk.n_examples // self._batch_size(risk)
