"""Real minibatches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import GradientCovarianceOperator
from flatmin.linalg import LinearOperator
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedLaw
from flatmin.risk import Risk

__all__ = ["SGD", "EpochState"]


@dataclass
class EpochState:
    """Where a pass over the data stands; advanced in place."""

    order: Tensor  # (*chains, N) a permutation of the examples
    position: int  # of the next batch's first example


class SGD(MatchedLaw):
    """SGD: the gradient of m examples, C = Σ/m with replacement.

    Without replacement C is (N - m)/(N - 1) Σ/m; ``sampling="epoch"`` cuts one
    permutation after the other into batches, drops the ragged rest, and has that same
    covariance marginally (its batches are not independent).
    m counts examples, whatever they weigh and however many targets they have. A
    minibatch gradient is the plain mean of its gᵢ = ∇ℓ̃ᵢ with ℓ̃ᵢ = N wᵢℓᵢ / Σw, so that
    its mean is g₀. Of sequences wᵢ is the number of targets that count in example i
    (``positions="all"``): PyTorch's loss modules divide by that of the minibatch
    instead, which is another step, and biased.

    ``noise_scale`` c ≠ 1 takes g₀ + c (g_B - g₀), which needs a full gradient.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        c.
    sampling : {"replacement", "without_replacement", "epoch"}, default="replacement"
        How the batches are drawn.
    match : {"trace", "none", "curvature", "frobenius"}, default="none"
        C is a multiple of Σ, so that all but "none" are the same: they take
        away the factor of sampling without replacement, for a full gradient a step.
    match_every : int, default=50
        Of no effect here; what other laws need for the last two.

    References
    ----------
    Equations 1 to 3 of arXiv 1803.00195.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import SGD
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = SGD(batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[ 5.,  5.],
            [ 5., 10.]])
    """

    name = "sgd"
    _state_class = EpochState
    _made_of_examples = True

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        sampling: Literal[
            "replacement", "without_replacement", "epoch"
        ] = "replacement",
        match: Literal["trace", "none", "curvature", "frobenius"] = "none",
        match_every: int = DEFAULT_MATCH_EVERY,
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.sampling = sampling
        self.match = match
        self.match_every = match_every

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        self._check_option("sampling", ("replacement", "without_replacement", "epoch"))
        m = self._batch_size(risk)
        if self.sampling != "replacement" and m > risk.n_examples:
            raise ValueError(
                "batch_size of sgd must be at most the number of examples, "
                f"{risk.n_examples}, with sampling={self.sampling!r}. Got {m}; use "
                "sampling='replacement' or a smaller batch."
            )
        if self.match != "none" and self._share_of_sgd(risk) == 0:
            raise ValueError(
                f"match={self.match!r} of sgd needs noise, and all {m} examples at "
                f"once have none with sampling={self.sampling!r}. Use a smaller "
                "batch_size, or match='none'."
            )

    def _refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any
    ) -> EpochState | None:
        # Only epochs have a state.
        if self.sampling != "epoch":
            return None
        if isinstance(previous, EpochState):
            return previous
        return EpochState(_permutations(risk, theta, rng), 0)

    def _noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: Any,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        # The loss is the minibatch's.
        indices = self._draw(risk, theta, state, rng)
        loss, gradient = risk.value_and_batch_gradient(theta, indices)
        if float(self.noise_scale) != 1 or factor is not None:
            full = risk.gradient(theta)
            noise = float(self.noise_scale) * (gradient - full)
            if factor is not None:
                noise = factor.unsqueeze(-1) * noise
            gradient = full + noise
        return loss, gradient

    def _covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        factor = (
            float(self.noise_scale) ** 2
            / self._batch_size(risk)
            * self._share_of_sgd(risk)
        )
        return factor * GradientCovarianceOperator(risk, theta)

    def _share_of_sgd(self, risk: Risk) -> float:
        if self.sampling == "replacement":
            return 1.0
        n = risk.n_examples
        return (n - self._batch_size(risk)) / max(1, n - 1)

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
