"""An empirical risk prepared at many θ, for products with H, G and J there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.locks import Lock
from flatmin.risk.arguments import as_direction
from flatmin.risk.autodiff.precision import in_full_float32
from flatmin.risk.chains.kernels import share
from flatmin.risk.chains.products import ChainProducts
from flatmin.risk.chains.ways import PRODUCTS, ChainWays
from flatmin.risk.network.batch_statistics import needs_examples
from flatmin.risk.network.model import FlatModel
from flatmin.risk.ranks.collectives import Ranks
from flatmin.risk.ranks.shard import Shard
from flatmin.risk.ranks.words import gathered, summed

__all__ = ["ChainLinearization"]

_SUMS = ("hvp", "fisher", "vjp")  # over the examples


class ChainLinearization:
    """The products with H, G and J of each chain; nothing is kept between products.

    Parameters
    ----------
    risk : EmpiricalRisk
    thetas : Tensor of shape (C, D)
        Of its own.
    chains : tuple of int
        The leading dimensions of θ, C in all.
    """

    def __init__(self, risk: Any, thetas: Tensor, chains: tuple[int, ...]) -> None:
        self.risk = risk
        self.device: torch.device = risk.device
        self.chains = chains
        self._thetas = thetas
        self._lock: Lock = risk._lock
        self._ways: ChainWays = risk._chain_ways
        self._ranks: Ranks = risk._ranks
        self._shard: Shard = risk._shard
        self._n_updates = risk._model.n_updates

    @property
    def _model(self) -> FlatModel:
        model: FlatModel = self.risk._model
        return model

    @property
    def theta(self) -> Tensor:
        """Where, shape (\\*chains, D)."""
        return self._thetas.view(*self.chains, -1)

    @property
    def paths(self) -> dict[str, str]:
        """How each quantity that was asked for is computed."""
        paths: dict[str, str] = self.risk.paths
        return paths

    @summed
    @in_full_float32
    def hvp(self, v: Tensor) -> Tensor:
        """Return H v; ``v`` and the result of shape (\\*chains, D)."""
        return self._product("hvp", v)

    @summed
    @in_full_float32
    def ggn(self, v: Tensor) -> Tensor:
        """Return G v = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v + λv; shapes as of ``hvp``."""
        product = self.fisher(v)
        return product.add(v.to(product), alpha=self._ranks.once(self.risk.l2))

    @summed
    @in_full_float32
    def fisher(self, v: Tensor) -> Tensor:
        """Return (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v, without the penalty; shapes as of ``hvp``."""
        return self._product("fisher", v)

    @gathered()
    @in_full_float32
    def jvp(self, v: Tensor) -> Tensor:
        """Return J v, shape (\\*chains, N, \\*output_shape)."""
        return self._product("jvp", v)

    @summed
    @in_full_float32
    def vjp(self, u: Tensor) -> Tensor:
        """Return Σ Jᵢᵀuᵢ; ``u`` of shape (\\*chains, N, \\*output_shape)."""
        return self._product("vjp", u)

    @needs_examples
    @gathered()
    @in_full_float32
    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀv, shape (\\*chains, N)."""
        return self._product("directional_derivatives", v)

    def _product(self, quantity: str, direction: Tensor) -> Tensor:
        risk = self.risk
        risk._model.check_current(self._n_updates)
        name, shape = "v", (*self.chains, risk.n_params)
        if quantity == "vjp":
            name, shape = "u", (*self.chains, risk.n_examples, *risk.output_shape)
        direction = as_direction(direction, name, shape, self._thetas)
        if not bool(direction.isfinite().all()):
            raise FloatingPointError(f"{name} must be finite. Got NaN or infinity.")
        directions = direction.reshape(len(self._thetas), *shape[len(self.chains) :])
        product = self._unchecked(
            quantity, directions, lambda: self._apart(quantity, directions)
        )
        if not bool(product.isfinite().all()):
            wild = (~product.isfinite()).flatten(1).any(1)
            raise FloatingPointError(
                "A product with H, G or J must be finite. Got NaN or infinity in "
                f"{int(wild.sum())} of {len(wild)} chains. Either θ or the outputs are "
                "not finite there, or the network has no such derivative at this θ."
            )
        return product.view(*self.chains, *product.shape[1:])

    @summed
    @in_full_float32
    def unchecked_hvp(self, v: Tensor) -> Tensor:
        """Return H v without a look for NaN, which waits for the device; as ``hvp``."""
        rows = v.flatten(0, -2)

        def apart() -> Tensor:
            pairs = zip(self._thetas, rows, strict=True)
            return torch.stack([self.risk._unchecked_hvp(*pair) for pair in pairs])

        return self._unchecked("hvp", rows, apart).view(v.shape)

    def _unchecked(
        self, quantity: str, directions: Tensor, apart: Callable[[], Tensor]
    ) -> Tensor:
        """Return a product; directions and result of shape (C, ...)."""
        n = min(self.risk.chunk_size, len(self.risk._data))
        return self._ways.compute(
            PRODUCTS,
            n,
            self._thetas,
            together=lambda: self._together(quantity, n, directions),
            apart=apart,
        )

    def _together(self, quantity: str, n: int, directions: Tensor) -> Tensor:
        risk = self.risk
        parts: list[Tensor] = []
        for chunk in risk._chunks():
            found = []
            for thetas, along in self._ways.blocks(
                PRODUCTS, n, self._thetas, directions
            ):
                shared = share(chunk, len(thetas))
                products = ChainProducts(risk._model, risk._loss, thetas, shared)
                some = along[:, chunk.rows] if quantity == "vjp" else along
                found.append(getattr(products, quantity)(some))
            part = torch.cat(found)
            if parts and quantity in _SUMS:
                parts[0] += part
            else:
                parts.append(part)
        product = torch.cat(parts, 1)
        if quantity in ("hvp", "fisher"):
            product /= risk.n_examples
        if quantity == "hvp":
            product.add_(directions, alpha=self._ranks.once(risk.l2))
        return product

    def _apart(self, quantity: str, directions: Tensor) -> Tensor:
        # One point at a time: what they keep would add up.
        pairs = zip(self._thetas, directions, strict=True)
        return torch.stack(
            [getattr(self.risk.linearize(theta), quantity)(v) for theta, v in pairs]
        )
