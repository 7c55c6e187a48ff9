"""A penalty on the norm of the gradient: no noise, but the gradient of another loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from flatmin._utils.numbers import check_positive
from flatmin.linalg import LinearOperator
from flatmin.noise._base import NoiseLaw
from flatmin.noise._gd import zero_covariance
from flatmin.risk import Risk

__all__ = ["GradientPenalty"]


class GradientPenalty(NoiseLaw):
    """θ ← θ - η ∇(L + λ‖g₀‖²), or with λ E‖g_B‖², C = 0: deterministic.

    Not noise: the mean of its gradient is not g₀, but that of L with a penalty. With
    ``norm="full"`` it is g₀ + 2λ H g₀. With ``norm="batches"`` the penalty is
    λ E‖g_B‖² = λ (‖g₀‖² + Tr(Σ)/m), over minibatches of m examples that are drawn with
    replacement; of Tr(Σ) the gradient is (2/N) Σ Hᵢnᵢ with nᵢ = gᵢ - g₀. Without
    noise, this is what backward error analysis says of SGD at a small rate: its path
    is near that of L + (η/4) E‖g_B‖², and that of gradient descent near that of
    L + (η/4) ‖g₀‖². A penalty (λ'/2)‖θ‖² of the risk is in g₀ and g_B.

    A step costs a gradient and a product with H: 3 gradients of a convolutional network
    of 11,330 parameters, 5 to 7 of small ones of linear layers. With ``norm="batches"``
    it goes back through the gᵢ as well: 8 gradients, and 35 to 60.

    Parameters
    ----------
    weight : float, default=0.01
        λ; η/4 is what gradient descent and SGD have by themselves.
    norm : {"full", "batches"}, default="full"
        Whose norm: that of g₀, or those of minibatches.
    batch_size : int, default=None
        m, for ``norm="batches"``; None is min(20, N).

    Examples
    --------
    H = diag(2, 1) and g₀ = (2, 1), so that H g₀ = (4, 1):

    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([2.0, 1.0])), torch.zeros(1, 2))
    >>> law = GradientPenalty(weight=0.5)
    >>> law.noisy_gradient(risk, torch.ones(2), None, torch.Generator())[1]
    tensor([6., 2.])

    References
    ----------
    D. Barrett and B. Dherin, "Implicit gradient regularization", ICLR 2021, arXiv
    2009.11162, for ‖g₀‖²; S. Smith et al., "On the origin of implicit regularization in
    stochastic gradient descent", ICLR 2021, arXiv 2101.12176, for minibatches.
    """

    name = "gradient_penalty"
    unbiased = False

    def __init__(
        self,
        *,
        weight: float = 0.01,
        norm: Literal["full", "batches"] = "full",
        batch_size: int | None = None,
    ) -> None:
        self.weight = weight
        self.norm = norm
        self.batch_size = batch_size

    @property
    def needs_example_gradients(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; only minibatches are made of the gᵢ."""
        return self.norm != "full"

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        self._check_option("norm", ("full", "batches"))
        super().check(risk)
        check_positive("weight of gradient_penalty", self.weight, or_zero=True)
        self._check_held("weight", self.weight, risk)

    def noisy_gradient(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`NoiseLaw.noisy_gradient`; the loss is L(θ) alone."""
        loss, gradient, product = risk.value_gradient_and_product(theta)
        pull = 2 * product
        if self.norm == "batches":
            spread = risk.covariance_trace_gradient(theta)
            pull = pull + spread / self._batch_size(risk)
        return loss, gradient + float(self.weight) * pull

    def covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """See :meth:`NoiseLaw.covariance`."""
        return zero_covariance(risk, theta)
