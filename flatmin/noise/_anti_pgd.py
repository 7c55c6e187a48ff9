"""Anticorrelated noise: what a step adds the next one takes away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import covariance_trace
from flatmin.linalg import LinearOperator, ScaledIdentityOperator
from flatmin.noise._match import (
    DEFAULT_MATCH_EVERY,
    MatchedLaw,
    UndefinedNoiseError,
)
from flatmin.noise._step import Step
from flatmin.risk import Risk

__all__ = ["AntiPGD", "AntiState"]


@dataclass
class AntiState:
    """The last draw, replaced by each one."""

    last: Tensor  # (*chains, D) zₙ
    variance: Tensor  # (*chains) of a coordinate of ε


class AntiPGD(MatchedLaw):
    """Anti-PGD, ε = s (zₙ₊₁ - zₙ) with z ~ N(0, I): C = 2s² I at any one step.

    In parameter units a step adds ξₙ - ξₙ₊₁, with ξ = η s z: θ + ξ makes steps along
    the gradient at θ, and the noise does not add up. Successive ε have the
    correlation -1/2. z₀ is drawn as well, so that the first step is like the others;
    so it is in each fit that goes on from the last one.

    Parameters
    ----------
    sigma : float, default=1e-3
        For ``match="none"``: the standard deviation of ξ in parameters, as in the
        source; s = σ/η, so that the law has to be told η, and the noise cancels
        exactly whatever the schedule of η. By plain steps only: an estimator refuses
        other optimizers.
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none", "curvature", "frobenius"}, default="trace"
        "trace" is 2s²D = Tr(Σ)/m, in gradient units: the noise cancels as far as
        η s stays what it is.
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=1
        Iterations between two evaluations of Tr(Σ).

    References
    ----------
    A. Orvieto et al., "Anticorrelated noise injection for improved generalization",
    ICML 2022, arXiv 2202.02831.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import AntiPGD
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = AntiPGD(batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[7.5000, 0.0000],
            [0.0000, 7.5000]])
    """

    name = "anti_pgd"
    _state_class = AntiState
    _matched_by_refresh = ("trace", "none")

    def __init__(
        self,
        *,
        sigma: float = 1e-3,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature", "frobenius"] = "trace",
        match_every: int = DEFAULT_MATCH_EVERY,
        refresh_every: int = 1,
    ) -> None:
        self.sigma = sigma
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.match_every = match_every
        self.refresh_every = refresh_every

    @property
    def takes_step(self) -> bool:
        """See :attr:`NoiseLaw.takes_step`; only σ in parameter units needs η."""
        return self.match == "none"

    @property
    def in_parameter_units(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`."""
        return self.match == "none"

    def _refresh(
        self,
        risk: Risk,
        theta: Tensor,
        rng: torch.Generator,
        previous: Any,
        *,
        step: Step | None = None,
    ) -> AntiState:
        last = previous.last if previous is not None else _normal(risk, theta, rng)
        if self.match == "none":
            return AntiState(last, self._variance_at(theta, step))
        trace = covariance_trace(risk, theta, check=False)
        variance = trace / (self._batch_size(risk) * risk.n_params)
        scaled = float(self.noise_scale) ** 2 * variance
        return AntiState(last, scaled.to(risk.dtype))

    def _variance_at(self, theta: Tensor, step: Step | None) -> Tensor:
        """Return 2σ²/η²."""
        if step is None:
            raise ValueError(
                "match='none' of anti_pgd has σ in parameter units and needs η. Got no "
                "step; call refresh and noisy_gradient with "
                "step=Step(iteration, lr), or use match='trace'."
            )
        if not step.lr > 0:
            raise UndefinedNoiseError(
                "match='none' of anti_pgd has σ in parameter units, which no step of "
                f"η = {step.lr:g} moves. Use a schedule that stays above 0, or "
                "match='trace'."
            )
        variance = 2 * (float(self.noise_scale) * float(self.sigma) / step.lr) ** 2
        return theta.new_full(theta.shape[:-1], variance)

    def _noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: AntiState,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
        step: Step | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self.match == "none":  # the size follows η, which may have changed since
            state.variance = self._variance_at(theta, step)
        loss, gradient = risk.value_and_gradient(theta)
        drawn = _normal(risk, theta, rng)
        scale = (state.variance / 2).sqrt()
        if factor is not None:
            scale = factor * scale
        noise = scale.unsqueeze(-1) * (drawn - state.last)
        state.last = drawn
        return loss, gradient + noise

    def _covariance(
        self, risk: Risk, theta: Tensor, state: AntiState
    ) -> LinearOperator:
        return ScaledIdentityOperator(state.variance, risk.n_params)


def _normal(risk: Risk, theta: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(theta.shape, generator=rng, dtype=risk.dtype, device=risk.device)
