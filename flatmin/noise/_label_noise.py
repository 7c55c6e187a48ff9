"""Noise from labels that are drawn anew in every iteration."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin._utils.numbers import check_flag, is_number
from flatmin.linalg import LinearOperator
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedLaw
from flatmin.risk import LabelDraw, Risk

__all__ = ["LabelNoise"]


class LabelNoise(MatchedLaw):
    """Label noise, ε = (1/N) Σ Jᵢᵀ (s(y'ᵢ) - E s(y'ᵢ)) with s = ∂ℓ̃ᵢ/∂fᵢ.

    The gradient on all examples with labels y' drawn anew, centred so that its mean is
    g₀; C = (1/N²) Σ Jᵢᵀ Kᵢ Jᵢ with Kᵢ the covariance of s(y'ᵢ). Under squared error
    y' = y + σ z, and K = 4σ²/C² I over C outputs: noise in the shape of the
    Gauss-Newton matrix, which does not vanish where the loss does. Under
    cross-entropy a label becomes each of the others with probability p/(C - 1), and
    K = diag(q) - qqᵀ with q the probabilities of y'; a binary one becomes 1 - y.
    One backward pass.

    Parameters
    ----------
    sigma : float, default=0.1
        σ, in units of y; for squared error alone.
    flip_probability : float, default=0.1
        p, at most 1; for the two cross-entropies alone.
    centred : bool, default=True
        False is the plain gradient with the new labels, s(y') - s(y). Under squared
        error it is the same; under a cross-entropy its mean is **not** g₀ but the
        gradient of the loss with labels smoothed to q. C is the same.
    batch_size : int, default=None
        m, for a match; None is min(20, N). Labels are drawn for all examples.
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none", "curvature", "frobenius"}, default="none"
        "none" is the size as it comes; "trace" is Tr(Σ)/m, which vanishes where
        all examples are fitted, and the noise with it.
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=10
        Iterations between two evaluations of the factor of "trace", which takes a
        sweep over the examples for each output.

    References
    ----------
    G. Blanc et al., COLT 2020, arXiv 1904.09080; A. Damian, T. Ma and J. Lee, "Label
    noise SGD provably prefers flat global minimizers", NeurIPS 2021, arXiv 2106.06530.
    They draw minibatches besides.

    Examples
    --------
    >>> import torch
    >>> from flatmin import EmpiricalRisk
    >>> from flatmin.noise import LabelNoise
    >>> line, x = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]])
    >>> risk = EmpiricalRisk(line, "squared_error", x, x)
    >>> law, theta = LabelNoise(sigma=1.0, match="none"), risk.params()
    >>> state = law.refresh(risk, theta, torch.Generator())
    >>> law.covariance(risk, theta, state).to_dense()  # (1/4)(4 · 1² + 4 · 2²)
    tensor([[5.]])
    """

    name = "label_noise"
    _made_of_examples = True

    def __init__(
        self,
        *,
        sigma: float = 0.1,
        flip_probability: float = 0.1,
        centred: bool = True,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature", "frobenius"] = "none",
        match_every: int = DEFAULT_MATCH_EVERY,
        refresh_every: int = 10,
    ) -> None:
        self.sigma = sigma
        self.flip_probability = flip_probability
        self.centred = centred
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.match_every = match_every
        self.refresh_every = refresh_every

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; False for the plain flip, whatever the loss."""
        return self.centred

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        p = self.flip_probability
        if not (is_number(p) and 0 <= p <= 1):
            raise ValueError(
                "flip_probability of label_noise must be a number from 0 to 1. "
                f"Got {p!r}."
            )
        check_flag("centred of label_noise", self.centred)
        examine = getattr(risk, "check_label_noise", None)
        if examine is None:
            raise ValueError(
                "label_noise needs labels to draw anew. Got a "
                f"{type(risk).__name__}, which has none; use another law."
            )
        examine()

    def _noisy_gradient(
        self,
        risk: Any,
        theta: Tensor,
        state: Any,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        scale = theta.new_full(theta.shape[:-1], float(self.noise_scale))
        if factor is not None:
            scale = scale * factor
        drawn: tuple[Tensor, Tensor] = risk.value_and_label_draw(
            theta, self._draw(), scale, rng
        )
        return drawn

    def _covariance(self, risk: Any, theta: Tensor, state: Any) -> LinearOperator:
        return float(self.noise_scale) ** 2 * _LabelCovariance(
            risk, theta, self._draw()
        )

    def _unbiased_law(self) -> LabelNoise:
        law = copy.copy(self)
        law.centred = True
        return law

    def _draw(self) -> LabelDraw:
        return LabelDraw(float(self.sigma), float(self.flip_probability), self.centred)


class _LabelCovariance(LinearOperator):
    """(1/N²) Σ Jᵢᵀ Kᵢ Jᵢ."""

    def __init__(self, risk: Any, theta: Tensor, draw: LabelDraw) -> None:
        super().__init__(
            risk.n_params,
            chains=tuple(theta.shape[:-1]),
            dtype=risk.dtype,
            device=risk.device,
        )
        self.risk = risk
        self.theta = theta.detach().clone()
        self.draw = draw
        self._point = risk.linearize(self.theta)

    def _matvec(self, v: Tensor) -> Tensor:
        product: Tensor = self.risk.label_covariance_product(self._point, v, self.draw)
        return product

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`; a sweep for each output."""
        traces: Tensor = self.risk.label_traces(self.theta, self.draw)
        total: Tensor = traces.sum(-1) / self.risk.n_examples**2
        return total.to(self.dtype)
