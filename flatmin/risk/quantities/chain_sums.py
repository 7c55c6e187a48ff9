"""What all quantities at many θ share: θ, what comes with it, blocks of chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.arrays import check_tensor
from flatmin._utils.locks import Lock
from flatmin.risk.arguments import as_direction, as_indices
from flatmin.risk.chains.kernels import (
    chain_losses_and_gradient,
    chain_losses_and_pullback,
    share,
)
from flatmin.risk.chains.ways import GRADIENTS, ChainWays
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.quantities.penalty import add_penalty

__all__ = ["ChainSums"]


class ChainSums:
    """A risk whose θ has shape (\\*chains, D).

    Parameters
    ----------
    risk : EmpiricalRisk
        Whose words of a single θ are the slow way.
    """

    def __init__(self, risk: Any) -> None:
        self.risk = risk
        self.device: torch.device = risk.device
        self._lock: Lock = risk._lock
        self._ways: ChainWays = risk._chain_ways

    def _n(self) -> int:
        """Return how many examples there are at a time."""
        return min(int(self.risk.chunk_size), len(self.risk._data))

    def _flat(self, theta: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return θ as (C, D) in the risk's dtype, and (\\*chains)."""
        check_tensor("θ", theta)
        if theta.shape[-1] != self.risk.n_params or not theta.numel():
            raise ValueError(
                f"θ must have shape ({self.risk.n_params},), one flat vector of the "
                f"trainable parameters, or (*chains, {self.risk.n_params}) with at "
                f"least one chain. Got {tuple(theta.shape)}."
            )
        flat = theta.detach().reshape(-1, self.risk.n_params)
        return flat.to(self.risk.device, self.risk.dtype), tuple(theta.shape[:-1])

    def _weights(self, v: Tensor, chains: tuple[int, ...]) -> Tensor:
        n = self.risk.n_examples
        return as_direction(v, "v", (*chains, n), self.risk._uniform).reshape(-1, n)

    def _scales(self, scale: Tensor, chains: tuple[int, ...]) -> Tensor:
        return as_direction(scale, "scale", chains, self.risk._uniform).reshape(-1)

    def _indices(
        self, name: str, indices: Any, chains: tuple[int, ...], n_axes: int
    ) -> Tensor:
        found = as_indices(indices, name, len(chains) + n_axes, self.device)
        if tuple(found.shape[: len(chains)]) != chains:
            raise ValueError(
                f"{name} must have {chains} in front, the chains of θ. Got shape "
                f"{tuple(found.shape)}."
            )
        return found.reshape(-1, *found.shape[len(chains) :])

    def _pulled(
        self,
        thetas: Tensor,
        chains: tuple[int, ...],
        cotangents: Tensor,
        *,
        penalised: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and Σ cᵢ ∇ℓ̃ᵢ of each chain; ``cotangents`` of shape (C, N)."""
        risk = self.risk

        def of(chunk: Chunk, some: Tensor, cotangents: Tensor) -> tuple[Tensor, Tensor]:
            shared = share(chunk, len(some))
            part = cotangents[:, chunk.rows]
            return chain_losses_and_gradient(
                risk._model, risk._loss, some, shared, cotangents=part
            )

        value, gradient = self._summed(of, risk._pull_back, thetas, cotangents)
        if penalised:
            value, gradient = self._penalised(value, gradient, thetas)
        return self._result(value, gradient, chains)

    def _pulled_through_outputs(
        self,
        thetas: Tensor,
        random: tuple[Tensor, ...],
        cotangents: Callable[..., Callable[[Tensor, Tensor], Tensor]],
        single: Callable[..., tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        risk = self.risk

        def of(chunk: Chunk, some: Tensor, *random: Tensor) -> tuple[Tensor, Tensor]:
            shared = share(chunk, len(some))
            u = cotangents(shared, random)
            return chain_losses_and_pullback(
                risk._model, risk._loss, some, shared, cotangents=u
            )

        return self._summed(of, single, thetas, *random)

    def _summed(
        self,
        of: Callable[..., tuple[Tensor, Tensor]],
        single: Callable[..., tuple[Tensor, Tensor]],
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return a value and a gradient by chunks of all chains, or chain by chain."""
        return self._ways.compute(
            GRADIENTS,
            self._n(),
            tensors[0],
            together=lambda: self._added(of, *tensors),
            apart=lambda: self._pairs_apart(single, *tensors),
        )

    def _added(
        self, of: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the sum of the gradients over all chunks."""
        thetas = tensors[0]
        sums = thetas.new_zeros(len(thetas), dtype=torch.float64)
        total = torch.zeros_like(thetas)
        for chunk in self.risk._chunks():
            parts = [
                of(chunk, *some)
                for some in self._ways.blocks(GRADIENTS, self._n(), *tensors)
            ]
            sums += torch.cat([part[0].sum(1, dtype=torch.float64) for part in parts])
            total += torch.cat([part[1] for part in parts])
        return (sums / self.risk.n_examples).to(self.risk.dtype), total

    def _cat(self, of: Callable[[Tensor], Tensor], n: int, thetas: Tensor) -> Tensor:
        blocks = self._ways.blocks(GRADIENTS, n, thetas)
        return torch.cat([of(some) for (some,) in blocks])

    def _apart(self, word: str, thetas: Tensor) -> Tensor:
        return torch.stack([getattr(self.risk, word)(theta) for theta in thetas])

    @staticmethod
    def _pairs_apart(
        single: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        parts = [single(*chain) for chain in zip(*tensors, strict=True)]
        values, gradients = zip(*parts, strict=True)
        return torch.stack(values), torch.stack(gradients)

    def _penalised(
        self, value: Tensor, gradient: Tensor, thetas: Tensor
    ) -> tuple[Tensor, Tensor]:
        l2 = self.risk._ranks.once(self.risk.l2)
        if not l2:
            return value, gradient
        return add_penalty(value, gradient, thetas, l2)

    @staticmethod
    def _result(
        value: Tensor, gradient: Tensor, chains: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        return value.view(chains), gradient.view(*chains, -1)
