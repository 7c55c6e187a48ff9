"""Products with H, G and J of one chunk by ways that any module allows.

G v and gᵢᵀv take J v and first derivatives of the network only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import (
    inner_products,
)
from flatmin.risk.products.double_backward import DoubleBackward
from flatmin.risk.products.finite_difference import FiniteDifference
from flatmin.risk.products.product_ways import ProductWays

__all__ = ["ReferenceProducts"]


class ReferenceProducts:
    """The part of one chunk in the products at one θ.

    Parameters
    ----------
    ways : ProductWays
    theta : Tensor of shape (D,)
    chunk : Chunk
    """

    def __init__(self, ways: ProductWays, theta: Tensor, chunk: Chunk) -> None:
        self.ways = ways
        self.chunk = chunk
        self._point = DoubleBackward(ways.model, ways.loss, theta, chunk)
        self.differences: FiniteDifference | None = None
        if ways.finite_difference:
            self.differences = FiniteDifference(ways.model, ways.loss, theta, chunk)

    def hvp(self, v: Tensor) -> Tensor:
        """Return Σ ∇²ℓ̃ᵢ v over the chunk, shape (D,)."""
        if self.differences is not None:
            self.ways.gradient.check(self._point.theta)
            product = self.differences.hvp(v)
            error = max(self.differences.error, self.ways.difference_error)
            self.ways.difference_error = error
            return product
        return self.ways.hvp(self._point, v)

    def ggn(self, v: Tensor) -> Tensor:
        """Return Σ Jᵢᵀ Hᵢ Jᵢ v over the chunk, shape (D,)."""
        Jv = self.jvp(v)
        HJv = self.ways.loss.hessian_product(self._point.outputs, self.chunk.y, Jv)
        return self.vjp(self.chunk.weigh(HJv))

    def jvp(self, v: Tensor) -> Tensor:
        """Return J v, shape (n, \\*output_shape)."""
        return self.ways.jvp(self._point, v)

    def vjp(self, u: Tensor) -> Tensor:
        """Return Σ Jᵢᵀ uᵢ over the chunk, shape (D,)."""
        return self._point.vjp(u)

    def gradient(self) -> Tensor:
        """Return Σ gᵢ over the chunk, shape (D,)."""
        return self.vjp(self.chunk.weigh(self._slopes()))

    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀ v, shape (n,)."""
        return self.chunk.weigh(inner_products(self._slopes(), self.jvp(v)))

    def _slopes(self) -> Tensor:
        """Return the slopes of the losses, without weights, (n, \\*output_shape)."""
        leaf = self._point.outputs.requires_grad_()
        with torch.enable_grad():
            total = self.ways.loss.per_example(leaf, self.chunk.y).sum()
        (slopes,) = torch.autograd.grad(total, leaf)
        return slopes
