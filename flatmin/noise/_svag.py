"""SGD's noise in more and smaller steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatmin._utils.numbers import check_count
from flatmin.curvature import GradientCovarianceOperator
from flatmin.linalg import LinearOperator
from flatmin.noise._base import NoiseLaw
from flatmin.risk import Risk

__all__ = ["SVAG"]


class SVAG(NoiseLaw):
    """Stochastic variance amplified gradient, C = l Σ/m at η/l, l steps an iteration.

    With two independent minibatches, drawn with replacement, and a = √(2l - 1) the
    gradient is (1 + a)/2 g_B + (1 - a)/2 g_B', of mean g₀ and covariance
    ((1 + a)² + (1 - a)²)/4 Σ/m = l Σ/m. An iteration of an estimator or of
    ``simulate`` is l such steps at η/l: as much time as one of SGD, with noise of the
    same covariance over that time. As l grows the path becomes that of SGD's
    stochastic differential equation, whose noise is Gaussian; l = 1 is SGD. In a loop
    of one's own take ``n_substeps`` steps at η/``n_substeps``.

    Parameters
    ----------
    n_substeps : int, default=4
        l.
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        c: the gradient is g₀ + c ε, which needs a full gradient where c ≠ 1.

    References
    ----------
    Z. Li, S. Malladi and S. Arora, "On the validity of modeling SGD with stochastic
    differential equations", NeurIPS 2021, arXiv 2102.12470.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import SVAG
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = SVAG(batch_size=1, n_substeps=2)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[10., 10.],
            [10., 20.]])
    """

    name = "svag"
    needs_example_gradients = True

    def __init__(
        self,
        *,
        n_substeps: int = 4,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
    ) -> None:
        self.n_substeps = n_substeps
        self.batch_size = batch_size
        self.noise_scale = noise_scale

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        check_count("n_substeps of svag", self.n_substeps)

    def noisy_gradient(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`NoiseLaw.noisy_gradient`; the loss is the minibatches' mean."""
        loss, gradient = self._batch(risk, theta, rng)
        if int(self.n_substeps) > 1:
            other_loss, other = self._batch(risk, theta, rng)
            amplified = (2 * int(self.n_substeps) - 1) ** 0.5
            loss = (loss + other_loss) / 2
            gradient = ((1 + amplified) * gradient + (1 - amplified) * other) / 2
        if float(self.noise_scale) != 1:
            full = risk.gradient(theta)
            gradient = full + float(self.noise_scale) * (gradient - full)
        return loss, gradient

    def covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """See :meth:`NoiseLaw.covariance`; of one of the l steps."""
        factor = (
            int(self.n_substeps) * float(self.noise_scale) ** 2 / self._batch_size(risk)
        )
        return factor * GradientCovarianceOperator(risk, theta)

    def _batch(
        self, risk: Risk, theta: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        shape = (*theta.shape[:-1], self._batch_size(risk))
        indices = torch.randint(
            risk.n_examples, shape, generator=rng, device=risk.device
        )
        return risk.value_and_batch_gradient(theta, indices)
