"""Gaussian noise shaped by the whole Gauss-Newton matrix, without an eigensolver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import GGNOperator, covariance_trace, ggn_trace
from flatmin.linalg import Estimate, LinearOperator
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedLaw
from flatmin.risk import Risk

__all__ = ["GLDGGN", "GGNState"]


@dataclass(frozen=True)
class GGNState:
    """The size of the noise, and how well the trace behind it is known."""

    scale: Tensor  # (*chains) σ_G times noise_scale
    ggn_trace: Tensor  # (*chains) Tr(G) where σ_G was measured
    ggn_trace_stderr: Tensor  # (*chains) 0 where it is exact


class GLDGGN(MatchedLaw):
    """GLD Gauss-Newton, C = σ_G² G with σ_G² = Tr(Σ)/(m Tr(G)).

    The cotangent (1/N) ∂ℓ̃ᵢ/∂fᵢ + (σ_G/√N) Sᵢzᵢ at the output, pulled back once
    through the network, is g₀ + ε with ε ~ N(0, σ_G² G): G's full spectrum at the
    price of a gradient.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none", "curvature", "frobenius"}, default="trace"
        "none" sets σ_G = 1;
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=10
        Iterations between two evaluations of Tr(Σ) and Tr(G).

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import GLDGGN
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDGGN(batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[12.,  0.],
            [ 0.,  3.]])
    """

    name = "gld_ggn"
    _state_class = GGNState
    _matched_by_refresh = ("trace", "none")

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature", "frobenius"] = "trace",
        match_every: int = DEFAULT_MATCH_EVERY,
        refresh_every: int = 10,
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.match_every = match_every
        self.refresh_every = refresh_every

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        examine = getattr(risk, "check_gauss_newton", None)
        if examine is not None:
            examine()

    def _refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any
    ) -> GGNState:
        # Tr(G) is known to 2 % or exactly.
        ggn = ggn_trace(risk, theta, rng=rng)
        if self.match == "none":
            scale = torch.full_like(ggn.value, float(self.noise_scale))
        else:
            target = covariance_trace(risk, theta, check=False) / self._batch_size(risk)
            squared = torch.where(ggn.value > 0, target / ggn.value, 0)
            scale = (float(self.noise_scale) * squared.sqrt()).to(risk.dtype)
        return GGNState(scale, ggn.value, ggn.stderr)

    def _noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: GGNState,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        scale = state.scale if factor is None else factor * state.scale
        return risk.value_and_gauss_newton_draw(theta, scale, rng)

    def _covariance(self, risk: Risk, theta: Tensor, state: GGNState) -> LinearOperator:
        # G at θ, σ_G of the last refresh.
        return state.scale.square() * GGNOperator(risk, theta)

    def _trace(
        self,
        risk: Risk,
        theta: Tensor,
        state: GGNState,
        rng: torch.Generator | int = 0,
    ) -> Estimate:
        squared, ggn = state.scale.square(), ggn_trace(risk, theta, rng=rng)
        return Estimate(squared * ggn.value, squared * ggn.stderr)
