"""An operator brought to the scale of one, so that no square overflows or vanishes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatmin.linalg._dense import check_finite_products
from flatmin.linalg._distributed import VectorShards
from flatmin.linalg._operator import LinearOperator

__all__ = ["UnitScaled"]


class UnitScaled(LinearOperator):
    """A / s with s a power of four near the largest number of the first product.

    A Hessian can be of order 1e±30 on raw features, and squares, of which norms and
    variances are made, of the square of that. Dividing by a power of two changes no
    digit, so results do not depend on the scale.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    ranks : VectorShards, default=None
        Which agree on s.

    Attributes
    ----------
    scale : Tensor of shape ()
        s, in float64; 1 before the first product that is not zero.
    """

    def __init__(
        self, operator: LinearOperator, ranks: VectorShards | None = None
    ) -> None:
        super().__init__(
            operator.shape[-1], dtype=operator.dtype, device=operator.device
        )
        self.operator = operator
        self.ranks = ranks
        self.scale = torch.ones((), dtype=torch.float64, device=operator.device)
        self._factor: Tensor | None = None  # 1 / s in the operator's dtype

    def _matvec(self, v: Tensor) -> Tensor:
        return self._scaled(self.operator.matvec(v))

    def matmat(self, V: Tensor) -> Tensor:
        """See :meth:`LinearOperator.matmat`."""
        before = self.operator.n_matvecs
        product = self._scaled(self.operator.matmat(V))
        self.n_matvecs += self.operator.n_matvecs - before
        return product

    def to_dense(self) -> Tensor:
        """See :meth:`LinearOperator.to_dense`."""
        before = self.operator.n_matvecs
        matrix = self._scaled(self.operator.to_dense())
        self.n_matvecs += self.operator.n_matvecs - before
        return matrix

    def _scaled(self, product: Tensor) -> Tensor:
        if self._factor is None:
            # The largest magnitude, without a copy of the product.
            largest = torch.maximum(product.amax(), -product.amin()).double()
            if self.ranks is not None:
                largest = self.ranks.largest(largest)
            check_finite_products(largest)
            if not bool(largest > 0):
                return product
            widest = math.frexp(torch.finfo(self.dtype).max)[1] - 2
            exponent = math.frexp(float(largest))[1]
            exponent = 2 * (max(-widest, min(widest, exponent)) // 2)
            self.scale = self.scale * 2.0**exponent
            self._factor = (1 / self.scale).to(self.dtype)
        return product * self._factor
