"""The Fisher-Rao norm of the parameters."""

from __future__ import annotations

from flatmin._utils.numbers import check_flag
from flatmin.curvature import FisherOperator, GGNOperator
from flatmin.curvature._finite import check_loss
from flatmin.curvature._point import Point, as_point
from flatmin.linalg import Estimate
from flatmin.measures._estimate import exact
from flatmin.risk import EmpiricalRisk, Risk

__all__ = ["fisher_rao_norm"]


def fisher_rao_norm(risk: Risk, theta: Point, *, empirical: bool = False) -> Estimate:
    """Return θᵀFθ, the square of the Fisher-Rao norm of θ.

    F is the Fisher matrix, with the labels that the model draws; ``empirical`` takes
    the true labels, (1/N) Σ (gᵢᵀθ)². Both are invariant to any linear change of the
    parameters that leaves the function as it is, and so to rescaled ReLU networks. For
    a ReLU network without biases and with l layers Jᵢθ = l fᵢ: it then says nothing of
    the curvature that the outputs do not say.

    Parameters
    ----------
    risk : Risk
        Of a network: with a loss by name, which is a likelihood, unless
        ``empirical``. An analytic risk takes its Gauss-Newton matrix for F.
    theta : Tensor or ndarray of shape (\\*chains, D)
    empirical : bool, default=False
        Take the true labels.

    Returns
    -------
    Estimate
        Exact.

    Raises
    ------
    TypeError
        If the loss is no likelihood.
    FloatingPointError
        If a product or a slope is not finite.

    References
    ----------
    T. Liang et al., "Fisher-Rao metric, geometry, and complexity of neural networks",
    AISTATS 2019, arXiv 1711.01530.

    Examples
    --------
    F = (2/N) XᵀX = 10, at θ = 2:

    >>> import torch
    >>> from flatmin.risk import LinearRegressionRisk
    >>> risk = LinearRegressionRisk(torch.tensor([[1.0], [3.0]]), torch.zeros(2))
    >>> float(fisher_rao_norm(risk, torch.tensor([2.0])))
    40.0
    """
    empirical = check_flag("empirical", empirical)
    theta = as_point(risk, theta)
    if empirical:
        point = risk.linearize(theta, n_products=1)
        slopes = point.directional_derivatives(theta)
        name, remedy = "A slope gᵢᵀθ", "look at θ and at these examples"
        value = check_loss(name, slopes, remedy).square().mean(-1)
        return exact(value, n_matvecs=1)
    operator: FisherOperator | GGNOperator
    if isinstance(risk, EmpiricalRisk):
        operator = FisherOperator(risk, theta, n_products=1)
    else:
        operator = GGNOperator(risk, theta, n_products=1)
    value = (theta.double() * operator.matvec(theta).double()).sum(-1)
    return exact(value, n_matvecs=1)
