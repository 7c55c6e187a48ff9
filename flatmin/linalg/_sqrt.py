"""|A|^(1/2) z without eigenpairs of A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating
from flatmin._utils.numbers import check_count, check_positive
from flatmin._utils.progress import progress_bar
from flatmin._utils.results import ShortRepr, as_array
from flatmin.linalg._convergence import warn_not_converged
from flatmin.linalg._dense import eigh
from flatmin.linalg._lanczos import LanczosProcess
from flatmin.linalg._operator import LinearOperator, check_one_matrix
from flatmin.linalg._unit_scale import UnitScaled

__all__ = ["SqrtResult", "sqrt_matvec"]


@dataclass(frozen=True, repr=False)
class SqrtResult(ShortRepr):
    """|A|^(1/2) z, how good it is and what it cost.

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import DiagonalOperator, sqrt_matvec
    >>> A = DiagonalOperator(torch.tensor([4.0, 9.0]))
    >>> found = sqrt_matvec(A, torch.ones(2), tol=1e-6)
    >>> found.vector, found.converged
    (tensor([2., 3.]), True)
    """

    vector: Tensor  # (D,), in the operator's dtype
    error: Tensor  # () estimate of ||vector - |A|^(1/2) z||, float64
    converged: bool  # error <= tol * ||vector||
    n_matvecs: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return as_array(self.vector, dtype, copy)


def sqrt_matvec(
    operator: LinearOperator,
    z: Tensor,
    *,
    tol: float = 0.05,
    max_steps: int = 200,
    verbose: bool = False,
) -> SqrtResult:
    """Return |A|^(1/2) z of a symmetric operator, by Lanczos from z.

    |A| has the eigenvectors of A and the magnitudes of its eigenvalues. With A V ≈ V T
    the result is ‖z‖ V |T|^(1/2) e₁ [1]_. A standard normal z makes it a draw from
    N(0, |A|), which is N(0, A) where A has no negative eigenvalues.

    The error is the change since half as many steps. From one step to the next the
    result changes by much less than what is missing: |λ|^(1/2) has a kink at 0, and
    where the spectrum is dense there the error falls only as a power of n.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        Symmetric.
    z : Tensor of shape (D,)
        In the operator's dtype and on its device.
    tol : float, default=0.05
        Relative error of the vector in its norm. On the Hessian of a trained network
        0.1 takes about 100 products and 0.05 about 170, since most of its eigenvalues
        crowd around 0.
    max_steps : int, default=200
        Products at most, and as many vectors are kept in memory.
    verbose : bool, default=False
        Show a progress bar over ``max_steps``.

    Returns
    -------
    SqrtResult

    Raises
    ------
    ValueError
        If z is not one finite vector of the operator's size, ``tol`` is negative
        or not finite, ``max_steps`` is less than 1 or the operator holds several
        matrices.
    TypeError
        If z is no tensor.
    torch.linalg.LinAlgError
        If a product is not finite.

    Warns
    -----
    ConvergenceWarning
        If ``tol`` is not reached within ``max_steps``.

    References
    ----------
    .. [1] E. Chow and Y. Saad, "Preconditioned Krylov subspace methods for sampling
       multivariate Gaussian distributions", 2014, :doi:`10.1137/130920587`.

    Examples
    --------
    >>> from flatmin.linalg import DiagonalOperator
    >>> A = DiagonalOperator(torch.tensor([4.0, 9.0, -16.0]))
    >>> sqrt_matvec(A, torch.ones(3)).vector
    tensor([2.0000, 3.0000, 4.0000])
    """
    check_one_matrix(operator, "sqrt_matvec")
    size = operator.shape[-1]
    tol = check_positive("tol", tol, or_zero=True)
    max_steps = check_count("max_steps", max_steps)
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a Tensor of shape ({size},). Got {z!r}.")
    check_floating("z", z)
    norm = torch.linalg.vector_norm(z, dtype=torch.float64)
    if z.shape != (size,) or not bool(torch.isfinite(norm)):
        raise ValueError(
            f"z must be a finite vector of shape ({size},). Got shape "
            f"{tuple(z.shape)} with norm {float(norm):g}."
        )
    if not bool(norm):
        return SqrtResult(z.to(operator.dtype), norm, True, 0)

    unit = UnitScaled(operator)
    process = LanczosProcess(unit, min(max_steps, size))
    process.start((z / norm).to(operator.dtype))
    with progress_bar(process.max_steps, "square root", verbose=verbose) as bar:
        while True:
            before = process.n_steps
            # An eighth more each time: a test costs four small eigenproblems.
            process.advance(max(4, before // 8))
            bar.update(process.n_steps - before)
            coefficients, error = _root(process)
            scale = torch.linalg.vector_norm(coefficients)
            converged = bool(error <= tol * scale)
            if converged or process.n_steps == process.max_steps:
                break
    if not converged:
        warn_not_converged(
            f"|A|^(1/2) z has a relative error of about {float(error / scale):.1e} "
            f"after {process.n_steps} products; tol={tol:g} was asked for. Raise "
            "max_steps or tol.",
            stacklevel=2,
        )
    norm = norm * unit.scale.sqrt()
    vector = (norm * coefficients).to(operator.dtype) @ process.basis[: process.n_steps]
    return SqrtResult(vector, norm * error, converged, process.n_steps)


def _root(process: LanczosProcess) -> tuple[Tensor, Tensor]:
    """Return |T|^(1/2) e₁, shape (n_steps,), and an estimate of its error, shape ()."""
    T, n = process.tridiagonal(), process.n_steps
    if process.exhausted:
        exact = _column(T, n, n)
        return exact, torch.zeros_like(exact[0])
    now, half = _mean_column(T, n, n), _mean_column(T, n // 2, n)
    return now, torch.linalg.vector_norm(now - half)


def _mean_column(T: Tensor, m: int, n: int) -> Tensor:
    """Return the mean of the results after m and m - 1 steps, shape (n,)."""
    # On a spectrum on both sides of 0 every other step has a Ritz value near the
    # kink, and the results alternate about the limit. Elsewhere this costs a step.
    return (_column(T, m, n) + _column(T, m - 1, n)) / 2


def _column(T: Tensor, m: int, n: int) -> Tensor:
    """Return |T|^(1/2) e₁ after m steps, padded to shape (n,)."""
    column = T.new_zeros(n)
    if m > 0:
        values, S = eigh(T[:m, :m])
        column[:m] = S @ (values.abs().sqrt() * S[0])
    return column
