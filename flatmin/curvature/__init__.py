"""H, G and Σ of a risk at a point: operators, traces and leading eigenpairs."""

from flatmin.curvature._covariance import (
    GradientCovarianceOperator,
    PreconditionedCovarianceOperator,
    covariance_diagonal,
    covariance_trace,
)
from flatmin.curvature._eigenpairs import (
    covariance_eigenpairs,
    hessian_eigenpairs,
    minibatch_eigenpairs,
)
from flatmin.curvature._fisher import EmpiricalFisherOperator, FisherOperator
from flatmin.curvature._hessian import (
    GGNOperator,
    HessianOperator,
    ggn_trace,
    hessian_trace,
)
from flatmin.curvature._preconditioner import adaptive_preconditioner
from flatmin.curvature._risk_operator import RiskOperator

__all__ = [
    "EmpiricalFisherOperator",
    "FisherOperator",
    "GGNOperator",
    "GradientCovarianceOperator",
    "HessianOperator",
    "PreconditionedCovarianceOperator",
    "RiskOperator",
    "adaptive_preconditioner",
    "covariance_diagonal",
    "covariance_eigenpairs",
    "covariance_trace",
    "ggn_trace",
    "hessian_eigenpairs",
    "hessian_trace",
    "minibatch_eigenpairs",
]
