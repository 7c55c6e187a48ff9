"""Noise with SGD's variance in each coordinate, without correlations."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.linalg import DiagonalOperator
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedGaussianLaw
from flatmin.noise._step import Step
from flatmin.risk import Risk

__all__ = ["GLDDiagonal"]


class GLDDiagonal(MatchedGaussianLaw):
    """GLD diagonal, C = diag(Σ)/m.

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
        Iterations between two evaluations of diag(Σ).

    References
    ----------
    Section 4.2, item 4 of arXiv 1803.00195.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import GLDDiagonal
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDDiagonal(batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[ 5.,  0.],
            [ 0., 10.]])
    """

    name = "gld_diagonal"
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
    ) -> DiagonalOperator:
        # covariance_diagonal would look for NaN, and so wait for the device.
        return self._noise(risk, risk.gradient_variances(theta))

    def refreshed_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        rng: torch.Generator,
        previous: Any = None,
        *,
        step: Step | None = None,
    ) -> tuple[DiagonalOperator, Tensor, Tensor]:
        """See :meth:`NoiseLaw.refreshed_gradient`; one sweep for L, g₀ and diag(Σ)."""
        if self.match not in self._matched_by_refresh:
            return super().refreshed_gradient(risk, theta, rng, previous, step=step)
        loss, gradient, variances = risk.value_gradient_and_variances(theta)
        state = self._noise(risk, variances)
        return state, loss, gradient + state.sample(rng)

    def _noise(self, risk: Risk, variances: Tensor) -> DiagonalOperator:
        scaled = float(self.noise_scale) ** 2 / self._batch_size(risk) * variances
        return DiagonalOperator(scaled.to(risk.dtype))
