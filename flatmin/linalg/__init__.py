"""Matrix-free linear algebra on symmetric operators; knows nothing of networks."""

from flatmin.linalg._absolute import AbsoluteOperator
from flatmin.linalg._density import SpectralDensity, spectral_density
from flatmin.linalg._diagonal import diagonal
from flatmin.linalg._eigenpairs import Eigenpairs, Which, order_eigenvalues
from flatmin.linalg._eigsh import eigsh
from flatmin.linalg._estimate import Estimate
from flatmin.linalg._frobenius import frobenius_norm
from flatmin.linalg._operator import LinearOperator
from flatmin.linalg._sqrt import SqrtResult, sqrt_matvec
from flatmin.linalg._storable import operator_from_storable, operator_to_storable
from flatmin.linalg._structured import (
    DenseOperator,
    DiagonalOperator,
    FunctionOperator,
    LowRankOperator,
    ScaledIdentityOperator,
)
from flatmin.linalg._trace import trace

__all__ = [
    "AbsoluteOperator",
    "DenseOperator",
    "DiagonalOperator",
    "Eigenpairs",
    "Estimate",
    "FunctionOperator",
    "LinearOperator",
    "LowRankOperator",
    "ScaledIdentityOperator",
    "SpectralDensity",
    "SqrtResult",
    "Which",
    "diagonal",
    "eigsh",
    "frobenius_norm",
    "operator_from_storable",
    "operator_to_storable",
    "order_eigenvalues",
    "spectral_density",
    "sqrt_matvec",
    "trace",
]
