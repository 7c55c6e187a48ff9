"""What the alignment asks of Σ: of a risk, or of rows that one sweep has given."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from flatmin.curvature import covariance_eigenpairs
from flatmin.curvature._covariance import covariance_operator
from flatmin.curvature._eigenpairs import gram_eigenpairs
from flatmin.curvature._hessian import HessianOperator
from flatmin.linalg import Eigenpairs, Estimate
from flatmin.measures._deflation import deflated_norm
from flatmin.measures._estimate import exact
from flatmin.measures._trace_product import (
    TraceProduct,
    trace_hessian_covariance,
    trace_product_of_rows,
)
from flatmin.risk import Risk

__all__ = ["Noise", "NoiseOfRisk", "NoiseOfRows"]


class Noise(Protocol):
    """Σ, or PΣP, on the coordinates of one table."""

    @property
    def n_matvecs(self) -> int:
        """Products with Σ, and those with an H of its own."""
        ...

    def eigenpairs(self, k: int, *, tol: float, **look: Any) -> Eigenpairs:
        """Return its k largest."""
        ...

    def variance_along(self, u: Tensor) -> Tensor:
        """Return uᵀΣu."""
        ...

    def trace_product(self, hessian: HessianOperator, **accuracy: Any) -> TraceProduct:
        """Return Tr(HΣ)."""
        ...

    def norm(self, pairs: Eigenpairs, **accuracy: Any) -> Estimate:
        """Return ‖Σ‖_F, of which some eigenpairs are known."""
        ...


class NoiseOfRisk:
    """Σ by products and sweeps, whatever N and D are."""

    def __init__(
        self,
        risk: Risk,
        theta: Tensor,
        select: str | list[str] | None,
        preconditioner: Tensor | None,
    ) -> None:
        self._risk, self._theta = risk, theta
        self._block: Any = {"select": select, "preconditioner": preconditioner}
        self._operator = covariance_operator(risk, theta, preconditioner, select)
        self._products_with_hessian = 0

    @property
    def n_matvecs(self) -> int:
        return self._operator.n_matvecs + self._products_with_hessian

    def eigenpairs(self, k: int, *, tol: float, **look: Any) -> Eigenpairs:
        options = {"tol": tol, **self._block, **look}
        return covariance_eigenpairs(self._risk, self._theta, k, **options)

    def variance_along(self, u: Tensor) -> Tensor:
        return (u.double() * self._operator.matvec(u).double()).sum()

    def trace_product(self, hessian: HessianOperator, **accuracy: Any) -> TraceProduct:
        options = {**self._block, **accuracy}
        product = trace_hessian_covariance(self._risk, self._theta, **options)
        self._products_with_hessian += product.n_matvecs
        return product

    def norm(self, pairs: Eigenpairs, **accuracy: Any) -> Estimate:
        return deflated_norm(self._operator, pairs, **accuracy)


class NoiseOfRows:
    """Σ = RᵀR / N of centred gradients R of shape (N, d); no further pass."""

    n_matvecs = 0

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def eigenpairs(self, k: int, *, tol: float, **look: Any) -> Eigenpairs:
        return gram_eigenpairs(self._rows, 1 / len(self._rows), k, tol)

    def variance_along(self, u: Tensor) -> Tensor:
        return (self._rows @ u).double().square().mean()

    def trace_product(self, hessian: HessianOperator, **accuracy: Any) -> TraceProduct:
        return trace_product_of_rows(hessian, self._rows, **accuracy)

    def norm(self, pairs: Eigenpairs, **accuracy: Any) -> Estimate:
        rows = self._rows.double()
        # ‖RᵀR‖ is ‖RRᵀ‖
        matrix = rows.mT @ rows if rows.shape[1] < len(rows) else rows @ rows.mT
        return exact(torch.linalg.matrix_norm(matrix / len(rows)))
