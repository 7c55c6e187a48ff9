"""Isotropic noise of constant size, or of the size that a temperature gives it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from flatmin._utils.numbers import check_positive
from flatmin.linalg import ScaledIdentityOperator
from flatmin.noise._match import (
    DEFAULT_MATCH_EVERY,
    MatchedGaussianLaw,
    UndefinedNoiseError,
)
from flatmin.noise._step import Step
from flatmin.risk import Risk

__all__ = ["GLDConst"]

DEFAULT_SIGMA = 1e-3


class GLDConst(MatchedGaussianLaw):
    """GLD const, C = σ² I: Langevin dynamics with a tuned σ, not trace-matched.

    With ``temperature=T`` it is the unadjusted Langevin algorithm: σ² = 2T/(Nη), so
    that a step adds noise of variance 2Tη/N to each parameter. As η → 0 the chain
    samples the density ∝ exp(-N L(θ)/T). At a finite η it does not: near a minimum,
    where L is quadratic and its Hessian H, its covariance is
    (T/N) H⁻¹ (I - ηH/2)⁻¹ in the place of (T/N) H⁻¹, and ηH must stay below 2.
    η is that of the step, after any schedule.

    Which T makes this density a posterior, with a flat prior, depends on the loss:

    - "cross_entropy": -N L is the log-likelihood, so T = 1.
    - "binary_cross_entropy" is the mean over C outputs: T = 1/C.
    - "squared_error" is the mean over C outputs: T = 2 s²/C for Gaussian noise of
      variance s² in each target; T = 1 stands for s² = C/2.
    - An example with several positions has their mean: T = 1/(number of positions).
      In general L is a mean over n targets in N examples, and T = N/n.
    - Weights count relative to their mean: with weights that are numbers of copies
      T = N/Σw.

    ``l2=λ`` of a risk, or a ``weight_decay`` λ of ``optimizer="sgd"``, is a prior
    N(0, T/(Nλ) I). A T below 1 times these values is a "cold posterior".

    The noise has that size by plain steps θ - η g on all examples only. Estimators
    refuse momentum, other optimizers, clipping and ``gradient_batch_size`` with it.

    Parameters
    ----------
    sigma : float, default=None
        σ in gradient units. None, without a temperature, is 1e-3, the paper's value for
        Fashion-MNIST.
    temperature : float, default=None
        T ≥ 0, in the place of σ. The law must be told η then: in a loop of one's own
        call ``refresh`` and ``noisy_gradient`` with ``step=Step(iteration, lr)``.
    batch_size : int, default=None
        m, for a match; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε, and so T by its square.
    match : {"trace", "none", "curvature", "frobenius"}, default="none"
        All but "none" leave nothing of σ but its direction: C is then gld_dynamic's,
        or I scaled to Tr(HC) = Tr(HΣ)/m or to ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`. With a temperature "none" alone.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.

    References
    ----------
    Section 4.2, item 2 of arXiv 1803.00195. For the temperature: A. Durmus and
    E. Moulines, arXiv 1605.01559 (the unadjusted Langevin algorithm).

    Examples
    --------
    A chain on L = (h/2) θ² with N = 2, h = 2, η = 0.5 and T = 1 has the stationary
    variance 1/(N h (1 - ηh/2)) = 0.5:

    >>> import torch
    >>> from flatmin.dynamics import simulate
    >>> from flatmin.noise import GLDConst
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.tensor([[2.0]]), torch.tensor([[1.0], [-1.0]]))
    >>> law = GLDConst(temperature=1.0)
    >>> run = simulate(risk, law, torch.zeros(1), lr=0.5, n_iter=30, n_chains=40_000)
    >>> abs(float(run["gld_const"].theta.var()) - 0.5) < 0.02
    True
    """

    name = "gld_const"
    _optional = ("sigma",)

    def __init__(
        self,
        *,
        sigma: float | None = None,
        temperature: float | None = None,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature", "frobenius"] = "none",
        match_every: int = DEFAULT_MATCH_EVERY,
    ) -> None:
        self.sigma = sigma
        self.temperature = temperature
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.match_every = match_every

    @property
    def takes_step(self) -> bool:
        """See :attr:`NoiseLaw.takes_step`; only a temperature needs η."""
        return self.temperature is not None

    @property
    def in_parameter_units(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; a temperature gives the size of η ε."""
        return self.temperature is not None

    @property
    def needs_all_examples(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; N of a temperature is that of all examples."""
        return self.temperature is not None

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        if self.temperature is None:
            return
        check_positive("temperature of gld_const", self.temperature, or_zero=True)
        self._check_held("temperature", self.temperature, risk)
        if self.sigma is not None:
            raise ValueError(
                "temperature and sigma of gld_const both say how large its noise is: "
                "σ² = 2T/(Nη). Got "
                f"temperature={self.temperature!r} and sigma={self.sigma!r}; leave one "
                "of them at None."
            )
        if self.match != "none":
            raise ValueError(
                "temperature of gld_const gives its noise a size, and a match another "
                f"one. Got temperature={self.temperature!r} and match={self.match!r}; "
                "use match='none', or leave temperature at None."
            )

    def _refresh(
        self,
        risk: Risk,
        theta: Tensor,
        rng: torch.Generator,
        previous: Any,
        *,
        step: Step | None = None,
    ) -> ScaledIdentityOperator:
        variance = self._variance(risk, step)
        scale = theta.new_full(theta.shape[:-1], variance)
        return ScaledIdentityOperator(scale, risk.n_params)

    def _noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: Any,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
        step: Step | None = None,
    ) -> tuple[Tensor, Tensor]:
        if self.temperature is not None:  # η may have changed since the refresh
            state.scale = torch.full_like(state.scale, self._variance(risk, step))
        return super()._noisy_gradient(risk, theta, state, rng, factor=factor)

    def _variance(self, risk: Risk, step: Step | None) -> float:
        scale = float(self.noise_scale)
        if self.temperature is None:
            sigma = DEFAULT_SIGMA if self.sigma is None else float(self.sigma)
            return (scale * sigma) ** 2
        if step is None:
            raise ValueError(
                "temperature of gld_const needs η: σ² = 2T/(Nη). Got no step; call "
                "refresh and noisy_gradient with step=Step(iteration, lr), or use "
                "sigma."
            )
        if not step.lr > 0:
            raise UndefinedNoiseError(
                "temperature of gld_const gives noise to steps that move. Got "
                f"η = {step.lr:g}; use a schedule that stays above 0, or sigma."
            )
        return 2 * scale**2 * float(self.temperature) / (risk.n_examples * step.lr)
