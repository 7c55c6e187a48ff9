"""Real minibatches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import GradientCovarianceOperator
from flatmin.linalg import LinearOperator
from flatmin.noise._base import NoiseLaw
from flatmin.risk import Risk

__all__ = ["SGD", "EpochState"]


@dataclass
class EpochState:
    """Where a pass over the data stands; advanced in place."""

    order: Tensor  # (*batch, N) a permutation of the examples
    position: int  # of the next batch's first example


class SGD(NoiseLaw):
    """SGD: the gradient of m examples, C = Σ/m with replacement.

    Without replacement C is (N - m)/(N - 1) Σ/m; ``sampling="epoch"`` cuts one
    permutation after the other into batches, drops the ragged rest, and has that same
    covariance marginally (its batches are not independent).
    ``noise_scale`` c ≠ 1 takes g₀ + c (g_B - g₀), which needs a full gradient.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        c.
    sampling : {"replacement", "without_replacement", "epoch"}, default="replacement"
        How the batches are drawn.

    References
    ----------
    Equations 1 to 3 of arXiv 1803.00195.
    """

    name = "sgd"

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        sampling: Literal[
            "replacement", "without_replacement", "epoch"
        ] = "replacement",
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.sampling = sampling

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        self._check_option("sampling", ("replacement", "without_replacement", "epoch"))
        m = self._batch_size(risk)
        if self.sampling != "replacement" and m > risk.n_examples:
            raise ValueError(
                f"batch_size must be at most the number of examples, "
                f"{risk.n_examples}, with sampling={self.sampling!r}. Got {m}; use "
                "sampling='replacement' or a smaller batch."
            )

    def refresh(
        self,
        risk: Risk,
        theta: Tensor,
        rng: torch.Generator,
        previous: Any = None,
    ) -> EpochState | None:
        """See :meth:`NoiseLaw.refresh`; only epochs have a state."""
        if self.sampling != "epoch":
            return None
        if isinstance(previous, EpochState):
            return previous
        return EpochState(_permutations(risk, theta, rng), 0)

    def noisy_gradient(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`NoiseLaw.noisy_gradient`; the loss is the minibatch's."""
        indices = self._draw(risk, theta, state, rng)
        loss, gradient = risk.value_and_batch_gradient(theta, indices)
        if self.noise_scale != 1:
            full = risk.gradient(theta)
            gradient = full + self.noise_scale * (gradient - full)
        return loss, gradient

    def covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """See :meth:`NoiseLaw.covariance`."""
        m, n = self._batch_size(risk), risk.n_examples
        factor = self.noise_scale**2 / m
        if self.sampling != "replacement":
            factor *= (n - m) / max(1, n - 1)
        return factor * GradientCovarianceOperator(risk, theta)

    def store_state(self, state: EpochState | None) -> dict[str, Any] | None:
        """See :meth:`NoiseLaw.store_state`."""
        return None if state is None else dict(vars(state))

    def restore_state(
        self, stored: dict[str, Any] | None, risk: Risk
    ) -> EpochState | None:
        """See :meth:`NoiseLaw.restore_state`."""
        return None if stored is None else EpochState(**stored)

    def _draw(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> Tensor:
        m, n = self._batch_size(risk), risk.n_examples
        shape = theta.shape[:-1]
        if self.sampling == "replacement":
            return torch.randint(n, (*shape, m), generator=rng, device=risk.device)
        if self.sampling == "without_replacement":
            keys = torch.rand((*shape, n), generator=rng, device=risk.device)
            return keys.topk(m, dim=-1).indices
        if state.position + m > n:
            state.order, state.position = _permutations(risk, theta, rng), 0
        indices: Tensor = state.order[..., state.position : state.position + m]
        state.position += m
        return indices


def _permutations(risk: Risk, theta: Tensor, rng: torch.Generator) -> Tensor:
    shape = (*theta.shape[:-1], risk.n_examples)
    return torch.rand(shape, generator=rng, device=risk.device).argsort(dim=-1)
