"""Heavy tails: noise without a variance."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

from flatmin._utils.numbers import is_number
from flatmin.curvature import covariance_trace
from flatmin.linalg import LinearOperator, ScaledIdentityOperator
from flatmin.noise._base import NoiseLaw
from flatmin.risk import Risk

__all__ = ["AlphaStable"]

# The upper quartile of N(0, 1).
_NORMAL_QUARTILE = 0.6744897501960817


class AlphaStable(NoiseLaw):
    """Symmetric α-stable coordinates: E exp(i uᵀε) = exp(-γ^α Σⱼ |uⱼ|^α).

    The coordinates are independent and of one scale γ, which gives each the
    interquartile range of N(0, Tr(Σ)/(mD)), or of N(0, σ²). α = 2 is ``gld_dynamic``
    (or ``gld_const``). For α < 2 there is no covariance: :meth:`covariance` raises and
    E‖ε‖² is infinite. There the law depends on the coordinates: unlike a Gaussian's,
    independent stable coordinates are not invariant under rotations.

    Parameters
    ----------
    alpha : float, default=1.5
        1 < α ≤ 2; below, ε has no mean.
    sigma : float, default=1e-3
        σ in gradient units, for ``match="none"``.
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none"}, default="trace"
        The interquartile range of N(0, Tr(Σ)/(mD)), or of N(0, σ²).
    refresh_every : int, default=1
        Iterations between two evaluations of Tr(Σ).

    References
    ----------
    U. Simsekli, L. Sagun and M. Gurbuzbalaban, "A tail-index analysis of stochastic
    gradient noise in deep neural networks", ICML 2019, arXiv 1901.06053; J. Chambers,
    C. Mallows and B. Stuck, JASA 71 (1976) 340, for the draws.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import AlphaStable
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = AlphaStable(alpha=2, batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[7.5000, 0.0000],
            [0.0000, 7.5000]])
    """

    name = "alpha_stable"

    def __init__(
        self,
        *,
        alpha: float = 1.5,
        sigma: float = 1e-3,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none"] = "trace",
        refresh_every: int = 1,
    ) -> None:
        self.alpha = alpha
        self.sigma = sigma
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.refresh_every = refresh_every

    @property
    def has_covariance(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; for α = 2 alone."""
        return self.alpha == 2

    @property
    def needs_example_gradients(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; for the size of SGD's noise."""
        return self.match != "none"

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        self._check_option("match", ("trace", "none"))
        if not (is_number(self.alpha) and 1 < self.alpha <= 2):
            raise ValueError(
                "alpha of alpha_stable must be above 1, for ε to have a mean, and at "
                f"most 2. Got {self.alpha!r}."
            )

    def refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any = None
    ) -> Tensor:
        """See :meth:`NoiseLaw.refresh`; the state is γ, of shape (\\*chains)."""
        if self.match == "none":
            deviation = theta.new_full(theta.shape[:-1], float(self.sigma))
        else:
            trace = covariance_trace(risk, theta, check=False)
            variance = trace / (self._batch_size(risk) * risk.n_params)
            deviation = variance.sqrt().to(risk.dtype)
        ratio = _NORMAL_QUARTILE / _stable_quartile(float(self.alpha))
        return float(self.noise_scale) * ratio * deviation

    def noisy_gradient(
        self, risk: Risk, theta: Tensor, state: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`NoiseLaw.noisy_gradient`."""
        loss, gradient = risk.value_and_gradient(theta)
        noise = _standard_stable(float(self.alpha), theta, rng).to(risk.dtype)
        return loss, gradient + state.unsqueeze(-1) * noise

    def covariance(self, risk: Risk, theta: Tensor, state: Tensor) -> LinearOperator:
        """See :meth:`NoiseLaw.covariance`; 2γ² I for α = 2.

        Returns
        -------
        LinearOperator of shape (\\*chains, D, D)

        Raises
        ------
        ValueError
            For α < 2: there is none.
        """
        if not self.has_covariance:
            raise ValueError(
                f"alpha_stable has no covariance with alpha={self.alpha}: its second "
                "moment is infinite. Use alpha=2, or another law."
            )
        return ScaledIdentityOperator(2 * state.square(), risk.n_params)

    def trace(self, risk: Risk, theta: Tensor, state: Tensor) -> Tensor:
        """See :meth:`NoiseLaw.trace`; infinite for α < 2, unless γ = 0."""
        if not self.has_covariance:
            return torch.where(state > 0, torch.inf, 0.0).to(state.dtype)
        return super().trace(risk, theta, state)


def _standard_stable(alpha: float, like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw from exp(-|u|^α) by Chambers, Mallows and Stuck, in float64."""
    uniform = torch.rand(
        (2, *like.shape), generator=rng, dtype=torch.float64, device=like.device
    )
    angle = math.pi * (uniform[0] - 0.5)
    waiting = -torch.log1p(-uniform[1])
    tail = (waiting / torch.cos((1 - alpha) * angle)) ** ((alpha - 1) / alpha)
    return torch.sin(alpha * angle) / torch.cos(angle) ** (1 / alpha) * tail


@lru_cache(maxsize=64)
def _stable_quartile(alpha: float) -> float:
    """Return the upper quartile of exp(-|u|^α), from P(X < x) by Gil-Pelaez."""
    end = 40.0 ** (1 / alpha)  # exp(-40) is nothing

    def excess(x: float) -> float:
        def integrand(u: float) -> float:
            return float(x * math.exp(-(u**alpha)) * _sinc(u * x))

        return float(quad(integrand, 0, end, epsabs=1e-13, limit=400)[0]) - math.pi / 4

    root: float = brentq(excess, 0.5, 1.5, xtol=1e-13)
    return root


def _sinc(x: float) -> float:
    return math.sin(x) / x if x else 1.0
