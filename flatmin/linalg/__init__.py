"""Matrix-free linear algebra on symmetric operators; knows nothing of networks."""

from flatmin.linalg._eigsh import EigenResult, Which, eigsh, order_eigenvalues
from flatmin.linalg._operator import LinearOperator
from flatmin.linalg._structured import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    LowRankOperator,
    ScaledIdentityOperator,
)
from flatmin.linalg._trace import TraceResult, trace

__all__ = [
    "DenseOperator",
    "DiagonalOperator",
    "EigenResult",
    "FunctionOperator",
    "LinearOperator",
    "LowRankOperator",
    "ScaledIdentityOperator",
    "TraceResult",
    "Which",
    "eigsh",
    "order_eigenvalues",
    "trace",
]
