"""Takeuchi's penalty: how much gradient noise there is where H is flat."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_positive
from flatmin.curvature._finite import check_finite
from flatmin.curvature._point import Point, as_one_point
from flatmin.linalg import Estimate
from flatmin.measures._estimate import exact
from flatmin.measures._trace_product import MATRICES
from flatmin.risk import Risk

__all__ = ["tic"]

LARGEST = 5000  # a matrix of 200 MB in float64


def tic(
    risk: Risk,
    theta: Point,
    *,
    damping: float,
    matrix: Literal["hessian", "ggn"] = "hessian",
    select: str | list[str] | None = None,
) -> Estimate:
    """Return Tr((H + δI)⁻¹Σ), by Takeuchi's criterion N times the generalisation gap.

    At a minimum of a model that has few parameters beside N the expected gap between
    test and training loss is Tr(H⁻¹Σ)/N; at a model that holds the truth Σ = H and the
    trace is D (Akaike). In a network H has no inverse: δ decides how much the flat
    directions weigh, and differences between models at one δ are what to look at. It is
    no sharpness: a flatter H makes it larger. Σ is centred, with the divisor N, and
    holds no penalty; H does.

    It costs D products with H, a sweep of per-example gradients and a Cholesky
    decomposition, in float64 and without a random error.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (D,)
    damping : float
        δ, in units of H.
    matrix : {"hessian", "ggn"}, default="hessian"
        H, or G in its place, which is never indefinite.
    select : str or list of str, default=None
        Names of parameters or modules, whose blocks of H and Σ are taken.

    Returns
    -------
    Estimate
        ``n_matvecs`` counts the products.

    Raises
    ------
    ValueError
        If there are more than 5,000 parameters, ``damping`` is not positive, or H + δI
        is not positive definite.
    FloatingPointError
        If a gradient or a product is not finite.

    References
    ----------
    V. Thomas et al., "On the interplay between noise and curvature and its effect on
    optimization and generalization", AISTATS 2020, arXiv 1906.07774.

    Examples
    --------
    H = diag(3, 1) and Σ = diag(1, 0): 1/(3 + 1).

    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([3.0, 1.0])), slopes)
    >>> float(tic(risk, torch.zeros(2), damping=1.0))
    0.25
    """
    damping = check_positive("damping", damping)
    check_known("matrix", matrix, tuple(MATRICES))
    theta = as_one_point(risk, theta, "tic")
    operator = MATRICES[matrix](risk, theta, select=select)
    size = operator.shape[-1]
    if size > LARGEST:
        raise ValueError(
            f"tic takes H in full, of at most {LARGEST} parameters. Got {size}; name a "
            "block of them by select."
        )
    ones = theta.new_ones(risk.n_examples)
    mean = risk.weighted_gradient(theta, ones).double()  # a penalty is not in it
    damped = operator.to_dense().double()
    check_finite("A product with H", damped, risk, operator.indices)
    damped.diagonal().add_(damping)
    root = _root(damped, damping)
    total = torch.zeros((), dtype=torch.float64, device=risk.device)
    for rows in risk.per_example_gradients(theta):
        noise = rows.double() - mean
        if operator.indices is not None:
            noise = noise[:, operator.indices]
        check_finite("A gradient gᵢ", noise, risk, operator.indices)
        whitened = torch.linalg.solve_triangular(root, noise.mT, upper=False)
        total = total + whitened.square().sum()
    return exact(total / risk.n_examples, operator.n_matvecs)


def _root(damped: Tensor, damping: float) -> Tensor:
    """Return Cholesky's root of H + δI, or raise."""
    root, info = torch.linalg.cholesky_ex((damped + damped.mT) / 2)
    if int(info):
        lowest = float(torch.linalg.eigvalsh(damped)[0]) - damping
        raise ValueError(
            "tic needs a positive definite H + δI. Got the eigenvalue "
            f"{lowest:.3g} of H and damping={damping:g}; use a larger damping, or "
            "matrix='ggn'."
        )
    result: Tensor = root
    return result
