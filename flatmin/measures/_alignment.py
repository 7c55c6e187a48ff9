"""How the gradient covariance Σ lies to the Hessian H: the whole table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.numbers import check_accuracy, check_count, check_positive
from flatmin._utils.random import check_seed, make_generator
from flatmin.curvature import (
    HessianOperator,
    covariance_eigenpairs,
)
from flatmin.curvature._covariance import covariance_operator
from flatmin.curvature._eigenpairs import gram_eigenpairs
from flatmin.curvature._point import Point, as_one_point
from flatmin.curvature._preconditioner import check_preconditioner
from flatmin.linalg import Eigenpairs, Estimate, eigsh
from flatmin.measures._alignment_result import Alignment
from flatmin.measures._deflation import deflated_norm, deflated_trace
from flatmin.measures._estimate import exact
from flatmin.measures._rounding import CLEAR, GradientMoments, gradient_moments
from flatmin.measures._subspaces import (
    cosines,
    overlap,
    principal_angles,
    projection_residual,
    subspace_share,
)
from flatmin.measures._trace_product import (
    low_rank_trace_product,
    trace_hessian_covariance,
    trace_product_of_rows,
)
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
    generator = rng
    hessian = HessianOperator(risk, theta, select=select)
    covariance = covariance_operator(risk, theta, preconditioner, select)
    size = hessian.shape[-1]
    if moments is None:
        moments = alignment_moments(risk, theta, hessian.indices, preconditioner)
    moments.check_noise("The alignment of Σ with H")
    noise: Any = {"select": select, "preconditioner": preconditioner}
    look: Any = {"rng": generator, "verbose": verbose}
    if rows is None:
        V = covariance_eigenpairs(risk, theta, k, tol=tol, **noise, **look)
    else:
        V = gram_eigenpairs(rows, 1 / risk.n_examples, k, tol)
    more = eigsh(hessian, min(k + 1, size), tol=tol, **look)
    U = _first(more, k)
    if not bool(more.eigenvalues.any()):
        raise ValueError(
            "The alignment of Σ with H needs a Hessian. Got H = 0 at this θ, so that "
            "it has no directions."
        )
    accuracy: Any = {"rtol": rtol, "max_matvecs": max_matvecs, **look}
    first = U.eigenvectors[:, 0]
    variance = (first.double() * covariance.matvec(first).double()).sum()
    if rows is None:
        product = trace_hessian_covariance(risk, theta, **noise, **accuracy)
    else:
        product = trace_product_of_rows(hessian, rows, **accuracy)
    low_rank = low_rank_trace_product(hessian, covariance, V, generator)
    hessian_trace = deflated_trace(hessian, U, **accuracy)
    hessian_norm = deflated_norm(hessian, U, **accuracy)
    if rows is None:
        covariance_norm = deflated_norm(covariance, V, **accuracy)
    else:  # ‖RᵀR‖ is ‖RRᵀ‖
        gram = rows.double() @ rows.double().mT / risk.n_examples
        covariance_norm = exact(torch.linalg.matrix_norm(gram))
    eps = CLEAR * torch.finfo(risk.dtype).eps
    rounding = eps * hessian_norm.value
    clear_hessian = U.eigenvalues.abs() > rounding
    clear_noise = V.eigenvalues > eps * V.eigenvalues[0]
    undefined = _of_vectors(clear_hessian, clear_noise, moments)
    undefined |= _of_values(
        more.eigenvalues, k, trace=hessian_trace, rounding=rounding, size=size
    )

    def unless(name: str, compute: Callable[[], Tensor]) -> Tensor:
        return U.eigenvalues.new_tensor(math.nan) if name in undefined else compute()

    vectors = U.eigenvectors, V.eigenvectors
    clear = clear_hessian.unsqueeze(1) & clear_noise
    inner = (U.eigenvectors.mT.double() @ V.eigenvectors.double()).abs()
    return Alignment(
        n_params=size,
        hessian_eigenvalues=U.eigenvalues,
        covariance_eigenvalues=V.eigenvalues,
        hessian_residuals=U.residuals,
        covariance_residuals=V.residuals,
        inner_products=inner.masked_fill(~clear, math.nan),
        cosines=cosines(*vectors).masked_fill(~clear.diagonal(), math.nan),
        angles=principal_angles(*vectors).masked_fill(~clear.all(), math.nan),
        residual=unless("projection residual", lambda: projection_residual(*vectors)),
        overlap=unless("overlap", lambda: overlap(*vectors)),
        gradient_share=unless(
            "gradient share", lambda: subspace_share(moments.mean, U.eigenvectors)
        ),
        hessian_trace=hessian_trace,
        covariance_trace=exact(moments.variances.sum()),
        hessian_norm=hessian_norm,
        covariance_norm=covariance_norm,
        trace_product=product,
        low_rank=low_rank,
        first_variance=variance,
        decay=unless("d", lambda: _decay(more.eigenvalues, k, size)),
        # From rows the product is of the same H, which has counted it.
        n_matvecs=hessian.n_matvecs
        + covariance.n_matvecs
        + (product.n_matvecs if rows is None else 0),
        undefined=undefined,
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


def _of_vectors(
    clear_hessian: Tensor, clear_noise: Tensor, moments: GradientMoments
) -> dict[str, str]:
    """Return why a quantity of eigenvectors is not defined, by name."""
    k = len(clear_hessian)
    n_hessian, n_noise = int(clear_hessian.sum()), int(clear_noise.sum())
    undefined: dict[str, str] = {}
    if min(n_hessian, n_noise) < k:
        why = (
            f"of k = {k} eigenvalues {n_hessian} of H and {n_noise} of Σ are more than "
            "rounding, and the other eigenvectors are chance"
        )
        undefined |= dict.fromkeys(("projection residual", "overlap"), why)
    if n_hessian < k or not bool(moments.has_gradient):
        what = "g₀" if n_hessian == k else f"one of k = {k} eigenvalues of H"
        undefined["gradient share"] = f"{what} is rounding"
    return undefined


def _of_values(
    eigenvalues: Tensor, k: int, *, size: int, trace: Estimate, rounding: Tensor
) -> dict[str, str]:
    """Return why a quantity of H's eigenvalues is not defined, by name."""
    undefined: dict[str, str] = {}
    unclear = torch.maximum(2 * trace.stderr, rounding)
    if not bool(trace.value.abs() > unclear):
        undefined["anisotropy gain"] = "Tr(H) is not clear of 0"
    if not bool(eigenvalues[0] > rounding):
        undefined["a"] = undefined["d"] = "λ₁ is not above 0"
    elif k == size:
        undefined["d"] = "there is no λ_{k+1} for k = D"
    elif bool((eigenvalues[k].abs() <= rounding) & (eigenvalues[k] != 0)):
        undefined["d"] = "λ_{k+1} is rounding"
    return undefined


def _first(pairs: Eigenpairs, k: int) -> Eigenpairs:
    return Eigenpairs(
        pairs.eigenvalues[:k],
        pairs.eigenvectors[:, :k],
        pairs.residuals[:k],
        pairs.converged[:k],
        pairs.n_matvecs,
    )


def _decay(eigenvalues: Tensor, k: int, size: int) -> Tensor:
    # An eigenvalue that is not positive lies below λ₁ D^-d for every d.
    ratio = (eigenvalues[k] / eigenvalues[0]).clamp(min=0)
    decay: Tensor = -ratio.log() / math.log(size)
    return decay
