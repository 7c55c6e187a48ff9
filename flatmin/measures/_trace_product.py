"""Tr(HΣ): how much curvature the gradient noise meets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_accuracy, check_count
from flatmin._utils.random import check_seed, make_generator
from flatmin.curvature import (
    GGNOperator,
    HessianOperator,
    RiskOperator,
    covariance_eigenpairs,
)
from flatmin.curvature._covariance import covariance_operator
from flatmin.curvature._finite import check_finite, check_loss
from flatmin.curvature._point import Point, as_point
from flatmin.curvature._preconditioner import check_preconditioner
from flatmin.linalg import Eigenpairs, Estimate, FunctionOperator, eigsh, trace
from flatmin.risk import Risk

__all__ = ["TraceProduct", "low_rank_trace_product", "trace_hessian_covariance"]

MATRICES: dict[str, type[RiskOperator]] = {
    "hessian": HessianOperator,
    "ggn": GGNOperator,
}


@dataclass(frozen=True, repr=False)
class TraceProduct(Estimate):
    """Tr(HΣ) in float64; ``n_matvecs`` counts products with H.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.measures import trace_hessian_covariance
    >>> float(trace_hessian_covariance(risk, theta))  # 4 · 5 + 10
    30.0
    """

    # (*chains) at most what a low rank leaves out; 0 of the other routes
    bound: Tensor = field(kw_only=True)


def trace_hessian_covariance(
    risk: Risk,
    theta: Point,
    k: int = 20,
    *,
    method: Literal["auto", "exact", "sampled", "low_rank"] = "auto",
    matrix: Literal["hessian", "ggn"] = "hessian",
    select: str | list[str] | None = None,
    preconditioner: Tensor | None = None,
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
    verbose: bool = False,
) -> TraceProduct:
    """Return Tr(HΣ), Σ with the divisor N.

    η²/(2m) times it is the rise of the loss by one step's noise, to second order. With
    nᵢ = gᵢ - g₀ the three routes are

    - ``"exact"``: (1/N) Σ nᵢᵀHnᵢ, by min(N, D) products with H and a sweep of
      per-example gradients.
    - ``"sampled"``: Tr(HΣ) is the trace of the (N, N) matrix nᵢᵀHnⱼ / N, whose product
      with z is a gradient weighted by z - z̄, a product with H and a sweep of
      directional derivatives; :func:`flatmin.linalg.trace` estimates it, with its
      error. Quadratic forms of it are those of noise drawn with the covariance Σ.
    - ``"low_rank"``: Σ γₗ vₗᵀHvₗ over the k leading eigenpairs of Σ, off by at most
      ``bound`` = ‖H‖₂ (Tr(Σ) - Σ γₗ).

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
        Chains only with the exact route.
    k : int, default=20
        Of the low rank, at most min(D, N - 1).
    method : {"auto", "exact", "sampled", "low_rank"}, default="auto"
        ``"auto"`` is exact where that takes at most ``max_matvecs`` products, else
        sampled.
    matrix : {"hessian", "ggn"}, default="hessian"
        ``"ggn"`` gives Tr(GΣ).
    select : str or list of str, default=None
        Names of parameters or modules, to whose blocks of H and Σ to confine it.
    preconditioner : Tensor of shape (D,), default=None
        The diagonal of P, of all parameters: then Tr(H PΣP), of the noise of RMSProp
        and Adam. See :class:`~flatmin.curvature.PreconditionedCovarianceOperator`.
    rtol : float, default=0.02
        Relative standard error to reach by sampling.
    max_matvecs : int, default=200
        Products of the sampled route at most.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.
    verbose : bool, default=False
        Show a progress bar over the samples.

    Returns
    -------
    TraceProduct

    Raises
    ------
    ValueError
        If ``method`` or ``matrix`` is unknown, or a number is too small.
    FloatingPointError
        If a gradient or a product is not finite; the message names the parameters.

    References
    ----------
    Z. Zhu et al., arXiv 1803.00195, section 4.2.

    Examples
    --------
    Noise along the sharper axis: 4 · 1.

    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> float(trace_hessian_covariance(risk, torch.zeros(2)))
    4.0
    """
    check_seed(rng)
    check_known("method", method, ("auto", "exact", "sampled", "low_rank"))
    check_known("matrix", matrix, MATRICES)
    k = check_count("k", k)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    theta = as_point(risk, theta)
    operator = MATRICES[matrix](risk, theta, select=select)
    P = 1.0 if preconditioner is None else check_preconditioner(preconditioner, risk)
    if method == "auto":
        cheap = min(operator.shape[-1], risk.n_examples) <= max_matvecs
        method = "exact" if cheap or len(operator.shape) > 2 else "sampled"
    if method == "exact":
        return _exact(operator, P)
    generator = make_generator(rng, risk.device)
    if method == "low_rank":
        covariance = covariance_operator(risk, theta, preconditioner, select)
        total = covariance.trace()  # raises, with names, where a variance is not finite
        pairs = covariance_eigenpairs(
            risk,
            theta,
            k,
            rng=generator,
            select=select,
            preconditioner=preconditioner,
        )
        return low_rank_trace_product(operator, pairs, total, generator)
    accuracy: Any = {"rtol": rtol, "max_matvecs": max_matvecs, "rng": generator}
    return _sampled(operator, P, **accuracy, verbose=verbose)


def low_rank_trace_product(
    operator: RiskOperator,
    pairs: Eigenpairs,
    covariance_trace: Tensor,
    rng: torch.Generator,
) -> TraceProduct:
    """Return Σ γₗ vₗᵀHvₗ and the bound on what is left out.

    Parameters
    ----------
    operator : RiskOperator
        H.
    pairs : Eigenpairs
        (γₗ, vₗ), the leading eigenpairs of Σ on the same coordinates.
    covariance_trace : Tensor of shape (\\*chains)
        Tr(Σ).
    rng : torch.Generator
        For the largest magnitude of H's eigenvalues.

    Returns
    -------
    TraceProduct
    """
    before = operator.n_matvecs
    V = pairs.eigenvectors
    curvatures = (V.double() * operator.matmat(V).double()).sum(-2)
    value = (pairs.eigenvalues * curvatures).sum(-1)
    top = eigsh(operator, 1, which="LM", rng=rng)
    # What has not converged bounds nothing; what has is off by its residual at most.
    largest = top.eigenvalues[0].abs() + top.residuals[0]
    largest = largest.masked_fill(~top.converged[0], torch.nan)
    left = (covariance_trace.double() - pairs.eigenvalues.sum(-1)).clamp(min=0)
    n_matvecs = operator.n_matvecs - before
    return TraceProduct(value, torch.zeros_like(value), n_matvecs, bound=largest * left)


def _exact(operator: RiskOperator, P: Tensor | float) -> TraceProduct:
    risk, theta = operator.risk, operator.theta
    ones = theta.new_ones((*theta.shape[:-1], risk.n_examples))
    # The mean of the gᵢ. It is not g₀, to which a penalty adds.
    mean = risk.weighted_gradient(theta, ones)
    mean = check_finite("The mean of the gᵢ", mean, risk).double().unsqueeze(-2)
    small = operator.shape[-1] <= risk.n_examples or len(operator.shape) > 2
    dense = operator.to_dense().double() if small else None
    total = torch.zeros(theta.shape[:-1], dtype=torch.float64, device=risk.device)
    for rows in risk.per_example_gradients(theta):
        noise = P * (rows.double() - mean)
        if operator.indices is not None:
            noise = noise[..., operator.indices]
        check_finite("A gradient gᵢ", noise, risk, operator.indices)
        if dense is not None:
            products = noise @ dense
        else:
            columns = operator.matmat(noise.to(operator.dtype).mT)
            products = columns.mT.double()
        total = total + (noise * products).sum((-2, -1))
    zero = torch.zeros_like(total)
    value = check_loss("Tr(HΣ)", total / risk.n_examples, "scale the loss down")
    return TraceProduct(value, zero, operator.n_matvecs, bound=zero)


def trace_product_of_rows(
    operator: RiskOperator,
    rows: Tensor,
    *,
    rtol: float,
    max_matvecs: int,
    rng: torch.Generator,
    verbose: bool,
) -> TraceProduct:
    """Return Tr(HΣ) for Σ = RᵀR / N, by a product with H a row or a sample.

    Parameters
    ----------
    operator : RiskOperator
        H.
    rows : Tensor of shape (N, d)
        R, the centred gradients.
    rtol : float
    max_matvecs : int
    rng : torch.Generator
    verbose : bool

    Returns
    -------
    TraceProduct
    """
    before, n = operator.n_matvecs, len(rows)
    if rows.shape[1] <= min(n, max_matvecs):
        H, R = operator.to_dense().double(), rows.double()
        value = ((R @ H) * R).sum() / n
        zero = torch.zeros_like(value)
        return TraceProduct(value, zero, operator.n_matvecs - before, bound=zero)

    def product(z: Tensor) -> Tensor:
        return rows @ operator.matvec(rows.mT @ z) / n

    inner = FunctionOperator(product, n, dtype=rows.dtype, device=rows.device)
    accuracy: Any = {"rtol": rtol, "max_matvecs": max_matvecs, "rng": rng}
    result = trace(inner, **accuracy, verbose=verbose)  # exact for N ≤ max_matvecs
    value, stderr = result.value.double(), result.stderr.double()
    n_matvecs = operator.n_matvecs - before
    return TraceProduct(value, stderr, n_matvecs, bound=torch.zeros_like(value))


def _sampled(
    operator: RiskOperator,
    P: Tensor | float,
    *,
    rtol: float,
    max_matvecs: int,
    rng: torch.Generator,
    verbose: bool,
) -> TraceProduct:
    risk, theta = operator.risk, operator.theta
    point = risk.linearize(theta, n_products=max_matvecs)

    def product(z: Tensor) -> Tensor:
        noise = P * risk.weighted_gradient(theta, z - z.mean())
        check_finite("A weighted gradient", noise, risk)
        if operator.indices is None:
            curved = operator.matvec(noise)
        else:
            curved = torch.zeros_like(noise)
            curved[operator.indices] = operator.matvec(noise[operator.indices])
        slopes = point.directional_derivatives(P * curved)
        return slopes - slopes.mean()

    inner = FunctionOperator(
        product, risk.n_examples, dtype=risk.dtype, device=risk.device
    )
    accuracy: Any = {"rtol": rtol, "max_matvecs": max_matvecs}
    result = trace(inner, **accuracy, rng=rng, verbose=verbose)
    value = result.value.double()
    stderr, bound = result.stderr.double(), torch.zeros_like(value)
    return TraceProduct(value, stderr, operator.n_matvecs, bound=bound)
