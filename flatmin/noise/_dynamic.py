"""Isotropic noise of SGD's size."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import covariance_trace
from flatmin.linalg import ScaledIdentityOperator
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedGaussianLaw
from flatmin.noise._step import Step
from flatmin.risk import Risk

__all__ = ["GLDDynamic"]


class GLDDynamic(MatchedGaussianLaw):
    """GLD dynamic, C = Tr(Σ)/(mD) I: isotropic, with the trace of SGD's noise.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none", "curvature", "frobenius"}, default="trace"
        The trace is SGD's as it comes;
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=1
        Iterations between two evaluations of Tr(Σ).

    References
    ----------
    Section 4.2, item 3 of arXiv 1803.00195.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import GLDDynamic
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDDynamic(batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[7.5000, 0.0000],
            [0.0000, 7.5000]])
    """

    name = "gld_dynamic"
    _made_of_examples = True
    _matched_by_refresh = ("trace", "none")

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature", "frobenius"] = "trace",
        match_every: int = DEFAULT_MATCH_EVERY,
        refresh_every: int = 1,
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.match_every = match_every
        self.refresh_every = refresh_every

    def _refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any
    ) -> ScaledIdentityOperator:
        return self._noise(risk, covariance_trace(risk, theta, check=False))

    def refreshed_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        rng: torch.Generator,
        previous: Any = None,
        *,
        step: Step | None = None,
    ) -> tuple[ScaledIdentityOperator, Tensor, Tensor]:
        """See :meth:`NoiseLaw.refreshed_gradient`; one sweep for L, g₀ and Tr(Σ)."""
        if self.match not in self._matched_by_refresh:
            return super().refreshed_gradient(risk, theta, rng, previous, step=step)
        loss, gradient, variances = risk.value_gradient_and_variances(theta)
        state = self._noise(risk, variances.sum(-1))
        return state, loss, gradient + state.sample(rng)

    def _noise(self, risk: Risk, trace: Tensor) -> ScaledIdentityOperator:
        per_coordinate = trace / (self._batch_size(risk) * risk.n_params)
        scaled = float(self.noise_scale) ** 2 * per_coordinate
        return ScaledIdentityOperator(scaled.to(risk.dtype), risk.n_params)
