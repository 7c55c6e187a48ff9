"""What the eigenpairs of H and Σ say beside each other, where they are no rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flatmin.linalg import Eigenpairs, Estimate
from flatmin.measures._rounding import CLEAR, GradientMoments
from flatmin.measures._subspaces import (
    cosines,
    overlap,
    principal_angles,
    projection_residual,
    subspace_share,
)

__all__ = ["compare_pairs"]


def compare_pairs(
    pairs: Eigenpairs,
    V: Eigenpairs,
    moments: GradientMoments,
    *,
    size: int,
    trace: Estimate,
    norm: Estimate,
) -> dict[str, Any]:
    """Return the fields of an Alignment that follow from eigenpairs.

    Parameters
    ----------
    pairs : Eigenpairs
        The k + 1 largest of H, or all D = k of them.
    V : Eigenpairs
        The k largest of Σ.
    moments : GradientMoments
    size : int
        D.
    trace, norm : Estimate
        Tr(H) and ‖H‖_F.

    Returns
    -------
    dict of str to object
        Eigenvalues, residuals, what compares eigenvectors, d, and ``undefined``.
    """
    k = len(V.eigenvalues)
    eps = CLEAR * torch.finfo(V.eigenvectors.dtype).eps
    rounding = eps * norm.value
    clear_hessian = pairs.eigenvalues[:k].abs() > rounding
    clear_noise = V.eigenvalues > eps * V.eigenvalues[0]
    undefined = _of_vectors(clear_hessian, clear_noise, moments)
    undefined |= _of_values(
        pairs.eigenvalues, k, trace=trace, rounding=rounding, size=size
    )

    def unless(name: str, compute: Callable[[], Tensor]) -> Tensor:
        return V.eigenvalues.new_tensor(math.nan) if name in undefined else compute()

    U = pairs.eigenvectors[:, :k]
    vectors = U, V.eigenvectors
    clear = clear_hessian.unsqueeze(1) & clear_noise
    inner = (U.mT.double() @ V.eigenvectors.double()).abs()
    return {
        "hessian_eigenvalues": pairs.eigenvalues[:k],
        "covariance_eigenvalues": V.eigenvalues,
        "hessian_residuals": pairs.residuals[:k],
        "covariance_residuals": V.residuals,
        "inner_products": inner.masked_fill(~clear, math.nan),
        "cosines": cosines(*vectors).masked_fill(~clear.diagonal(), math.nan),
        "angles": principal_angles(*vectors).masked_fill(~clear.all(), math.nan),
        "residual": unless(
            "projection residual", lambda: projection_residual(*vectors)
        ),
        "overlap": unless("overlap", lambda: overlap(*vectors)),
        "gradient_share": unless(
            "gradient share", lambda: subspace_share(moments.mean, U)
        ),
        "decay": unless("d", lambda: _decay(pairs.eigenvalues, k, size)),
        "undefined": undefined,
    }


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


def _decay(eigenvalues: Tensor, k: int, size: int) -> Tensor:
    # An eigenvalue that is not positive lies below λ₁ D^-d for every d.
    ratio = (eigenvalues[k] / eigenvalues[0]).clamp(min=0)
    decay: Tensor = -ratio.log() / math.log(size)
    return decay
