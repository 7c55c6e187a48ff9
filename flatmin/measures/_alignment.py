"""How the gradient covariance Σ lies to the Hessian H: the whole table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.numbers import check_accuracy, check_count, check_positive
from flatmin._utils.random import check_seed, make_generator
from flatmin.curvature import HessianOperator
from flatmin.curvature._point import Point, as_one_point
from flatmin.curvature._preconditioner import check_preconditioner
from flatmin.linalg import Eigenpairs, eigsh
from flatmin.measures._alignment_noise import Noise, NoiseOfRisk, NoiseOfRows
from flatmin.measures._alignment_pairs import compare_pairs
from flatmin.measures._alignment_result import Alignment
from flatmin.measures._deflation import deflated_norm, deflated_trace
from flatmin.measures._estimate import exact
from flatmin.measures._rounding import GradientMoments, gradient_moments
from flatmin.measures._trace_product import low_rank_trace_product
from flatmin.risk import Risk

__all__ = ["align", "alignment", "alignment_moments"]


def alignment(
    risk: Risk,
    theta: Point,
    k: int = 20,
    *,
    select: str | list[str] | None = None,
    preconditioner: Tensor | None = None,
    tol: float = 1e-4,
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
    verbose: bool | int = False,
) -> Alignment:
    """Return how Σ lies to H: cosines, projection residual, traces and their ratios.

    Eigenvalues are ordered algebraically, as in equation 8 of the paper. Traces and
    norms are the sums over the k pairs plus an estimate of the rest.

    What is not defined at this θ is NaN, and ``undefined`` tells why: what compares
    eigenvectors, where fewer than k eigenvalues of H or of Σ are more than rounding and
    the other vectors are chance; the gradient's share where g₀ is rounding; the gain
    where Tr(H) is not clear of 0; a where λ₁ ≤ 0; d where λ₁ ≤ 0, k = D or λ_{k+1} is
    rounding.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (D,)
    k : int, default=20
        Eigenpairs of either matrix, at most min(D, N - 1).
    select : str or list of str, default=None
        Names of parameters or modules: everything is then of their blocks of H and Σ.
    preconditioner : Tensor of shape (D,), default=None
        The diagonal of P, of all parameters: PΣP, the covariance of the noise of
        RMSProp and Adam, then stands in the place of Σ, and the table names it. See
        :func:`~flatmin.curvature.adaptive_preconditioner`.
    tol : float, default=1e-4
        Residual of the eigenpairs, relative to max |λ|.
    rtol : float, default=0.02
        Relative standard error of the traces and norms to reach.
    max_matvecs : int, default=200
        Products for each of them at most.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.
    verbose : bool or int, default=False
        Show progress bars of the solvers.

    Returns
    -------
    Alignment

    Raises
    ------
    ValueError
        If k does not fit, a name fits no parameter, θ is not one vector, or ``tol``,
        ``rtol`` or ``max_matvecs`` is too small, or H or Σ is rounding alone, or
        ``preconditioner`` is not D finite and positive numbers.
    FloatingPointError
        If the loss or a derivative is not finite; the message names the parameters.

    References
    ----------
    Z. Zhu et al., arXiv 1803.00195, equations 8, 9 and 13; a and d are those of its
    version at ICML 2019, conditions of the proposition on Tr(HΣ).

    Examples
    --------
    Noise along the sharper of two axes:

    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> result = alignment(risk, torch.ones(2), 1)
    >>> float(result.trace_product), float(result.anisotropy_gain)
    (4.0, 1.6)
    """
    k = check_count("k", k)
    tol = check_positive("tol", tol)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    check_seed(rng)
    theta = as_one_point(risk, theta, "alignment")
    return align(
        risk,
        theta,
        k,
        select=select,
        preconditioner=preconditioner,
        tol=tol,
        rtol=rtol,
        max_matvecs=max_matvecs,
        rng=make_generator(rng, risk.device),
        verbose=bool(verbose),
    )


def alignment_moments(
    risk: Risk, theta: Tensor, indices: Tensor | None, preconditioner: Tensor | None
) -> GradientMoments:
    """Return g₀ and diag(Σ), or with a preconditioner diag(PΣP)."""
    moments = gradient_moments(risk, theta, indices)
    if preconditioner is None:
        return moments
    return _preconditioned(moments, preconditioner, risk, indices)


def align(
    risk: Risk,
    theta: Tensor,
    k: int,
    *,
    select: str | list[str] | None,
    preconditioner: Tensor | None,
    tol: float,
    rtol: float,
    max_matvecs: int,
    rng: torch.Generator,
    verbose: bool,
    moments: GradientMoments | None = None,
    rows: Tensor | None = None,
) -> Alignment:
    """Return what :func:`alignment` does."""
    # moments, and rows, the centred gradients of the block, of shape (N, d), are there
    # if one sweep has given those of all blocks. Then Σ costs no further pass.
    hessian = HessianOperator(risk, theta, select=select)
    size = hessian.shape[-1]
    if moments is None:
        moments = alignment_moments(risk, theta, hessian.indices, preconditioner)
    moments.check_noise("The alignment of Σ with H")
    noise: Noise = (
        NoiseOfRisk(risk, theta, select, preconditioner)
        if rows is None
        else NoiseOfRows(rows)
    )
    look: Any = {"rng": rng, "verbose": verbose}
    accuracy: Any = {"rtol": rtol, "max_matvecs": max_matvecs, **look}
    V = noise.eigenpairs(k, tol=tol, **look)
    pairs = eigsh(hessian, min(k + 1, size), tol=tol, **look)
    if not bool(pairs.eigenvalues.any()):
        raise ValueError(
            "The alignment of Σ with H needs a Hessian. Got H = 0 at this θ, so that "
            "it has no directions."
        )
    U = _first(pairs, k)
    total = moments.variances.sum()
    product = noise.trace_product(hessian, **accuracy)
    low_rank = low_rank_trace_product(hessian, V, total, rng)
    trace = deflated_trace(hessian, U, **accuracy)
    norm = deflated_norm(hessian, U, **accuracy)
    return Alignment(
        **compare_pairs(pairs, V, moments, size=size, trace=trace, norm=norm),
        n_params=size,
        hessian_trace=trace,
        covariance_trace=exact(total),
        hessian_norm=norm,
        covariance_norm=noise.norm(V, **accuracy),
        trace_product=product,
        low_rank=low_rank,
        first_variance=noise.variance_along(U.eigenvectors[:, 0]),
        n_matvecs=hessian.n_matvecs + noise.n_matvecs,
        noise="Σ" if preconditioner is None else "PΣP",
    )


def _preconditioned(
    moments: GradientMoments,
    preconditioner: Tensor,
    risk: Risk,
    indices: Tensor | None,
) -> GradientMoments:
    """Return the moments with the variances, and what is rounding in them, of Pg."""
    squares = check_preconditioner(preconditioner, risk).double().square()
    if indices is not None:
        squares = squares[indices]
    return replace(
        moments,
        variances=squares * moments.variances,
        noise_rounding=squares * moments.noise_rounding,
    )


def _first(pairs: Eigenpairs, k: int) -> Eigenpairs:
    return Eigenpairs(
        pairs.eigenvalues[:k],
        pairs.eigenvectors[:, :k],
        pairs.residuals[:k],
        pairs.converged[:k],
        pairs.n_matvecs,
    )
