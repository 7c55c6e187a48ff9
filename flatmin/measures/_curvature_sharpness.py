"""Sharpness read off the Hessian: its trace and its largest eigenvalue."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin._utils.numbers import check_accuracy, check_positive
from flatmin._utils.random import check_seed, make_generator
from flatmin.curvature import HessianOperator, hessian_eigenpairs
from flatmin.curvature._point import Point, as_point
from flatmin.linalg import Estimate, trace
from flatmin.risk import Risk

__all__ = ["max_eigenvalue", "trace_sharpness"]


def trace_sharpness(
    risk: Risk,
    theta: Point,
    *,
    sigma: float = 0.01,
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
) -> Estimate:
    """Return (s²/2) Tr(H), the second order of the expected sharpness.

    What :func:`expected_sharpness` comes to as s → 0, without the noise of finite
    differences; where the two differ, s is not small. It is not invariant to a
    reparametrisation.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    sigma : float, default=0.01
        s, in units of θ.
    rtol : float, default=0.02
        Relative standard error to reach.
    max_matvecs : int, default=200
        Products with H at most; exact where D is no larger.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random probes.

    Returns
    -------
    Estimate
        In units of the loss; ``n_matvecs`` counts the probes.

    Raises
    ------
    ValueError
        If ``sigma`` is not positive, or ``rtol`` or ``max_matvecs`` is too small.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([5.0, 1.0])), torch.zeros(1, 2))
    >>> float(trace_sharpness(risk, torch.zeros(2), sigma=0.1))
    0.03
    """
    check_seed(rng)
    sigma = check_positive("sigma", sigma)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    theta = as_point(risk, theta)
    result = trace(
        HessianOperator(risk, theta, n_products=max_matvecs),
        rtol=rtol,
        max_matvecs=max_matvecs,
        rng=rng,
    )
    factor = sigma**2 / 2
    return Estimate(
        factor * result.value.double(),
        factor * result.stderr.double(),
        result.n_matvecs,
    )


def max_eigenvalue(
    risk: Risk,
    theta: Point,
    *,
    tol: float = 1e-4,
    v0: Tensor | None = None,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    basis_device: torch.device | str | None = None,
    basis_dtype: torch.dtype | str | None = None,
    rng: torch.Generator | int | None = 0,
) -> Estimate:
    """Return λ₁, the largest eigenvalue of H.

    Gradient descent at the rate η is stable along every direction while λ₁ < 2/η. It
    is not invariant to a reparametrisation.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    tol : float, default=1e-4
        Residual of the eigenpair, relative to max |λ|; the error of λ₁ itself is
        smaller.
    v0 : Tensor of shape (D,), default=None
        Where Lanczos starts, such as the eigenvector at a θ nearby.
    max_matvecs, max_basis, basis_device, basis_dtype : default=None
        As in :func:`flatmin.linalg.eigsh`: products at most, and what bounds the
        vectors that a search holds.
    rng : torch.Generator, int or None, default=0
        For Lanczos' start vector.

    Returns
    -------
    Estimate
        In units of the loss over θ². ``stderr`` is 0, or NaN where the pair has not
        converged: the value may then be far below λ₁.

    Raises
    ------
    ValueError
        If ``tol`` is not positive, or ``v0`` or an argument of the search does not
        fit.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([5.0, 1.0])), torch.zeros(1, 2))
    >>> float(max_eigenvalue(risk, torch.zeros(2)))
    5.0
    """
    check_seed(rng)
    tol = check_positive("tol", tol)
    theta = as_point(risk, theta)
    generator = make_generator(rng, risk.device)
    pair = hessian_eigenpairs(
        risk,
        theta,
        1,
        tol=tol,
        v0=v0,
        max_matvecs=max_matvecs,
        max_basis=max_basis,
        basis_device=basis_device,
        basis_dtype=basis_dtype,
        rng=generator,
    )
    value = pair.eigenvalues[..., 0].double()
    # Without convergence it is no eigenvalue, and how far off is not known.
    stderr = torch.zeros_like(value).masked_fill(~pair.converged[..., 0], torch.nan)
    return Estimate(value, stderr, pair.n_matvecs)
