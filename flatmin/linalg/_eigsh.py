"""Extreme eigenpairs of a symmetric operator by thick-restart Lanczos."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating
from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_count, check_positive
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import check_seed, make_generator
from flatmin.linalg._basis_memory import basis_memory, basis_size
from flatmin.linalg._bounded_search import bounded_search
from flatmin.linalg._convergence import warn_not_converged
from flatmin.linalg._dense import eigh
from flatmin.linalg._distributed import VectorShards
from flatmin.linalg._eigenpairs import WHICH, Eigenpairs, Which, order_eigenvalues
from flatmin.linalg._operator import LinearOperator, check_one_matrix
from flatmin.linalg._orthogonal import random_direction
from flatmin.linalg._thick_restart import thick_restart
from flatmin.linalg._unit_scale import UnitScaled

__all__ = ["eigsh"]


def eigsh(
    operator: LinearOperator,
    k: int,
    *,
    which: Which = "LA",
    tol: float = 1e-4,
    v0: Tensor | None = None,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    basis_device: torch.device | str | None = None,
    basis_dtype: torch.dtype | str | None = None,
    distributed: bool = False,
    rng: torch.Generator | int | None = None,
    verbose: bool = False,
) -> Eigenpairs:
    """Return k extreme eigenpairs of a symmetric operator.

    Lanczos with a full, twice-applied orthogonalisation (no ghosts) and a thick
    restart [1]_. An invariant subspace is left through a random vector, so
    rank-deficient operators are no special case. For D ≤ max(64, 5 k + 42) a basis of
    4 k + 40 vectors is nearly the whole space: then D products form the matrix, and a
    dense solver takes it. Where such a basis has more than 2²⁵ numbers it is one of
    2 k + 10 vectors, and the matrix is formed for D ≤ 3 k + 12.

    The Krylov space of one vector has one vector of each eigenspace, so a copy of a
    repeated eigenvalue can be missing although all residuals are small. Converged
    pairs are therefore held against a second random vector, in as many products as
    show a copy that stands out from the rest by half of the rest's range. Once a copy
    is found, the search goes on from further random vectors. It is then long enough for
    every wanted value that differs from the last one by more than 2 ``tol`` · max |λ|.
    Where products do not suffice for that, no pair counts as converged.

    Two kinds of eigenvalues can still be missing: one of a crowd, closer to the next
    than ``tol`` · max |λ|, and a single copy that stands out by little.

    Residuals are computed: for every basis vector v, the product A v that was taken
    is kept as its measured inner products with the basis and the norm of the rest,
    and a Ritz vector is a combination of basis vectors. So ‖Au - λu‖ needs no
    further product, and agrees with one taken afterwards to the rounding of the
    operator's dtype. An operator that is not symmetric shows in its residuals and does
    not converge.

    **Large vectors.** ``max_basis``, ``basis_device``, ``basis_dtype`` or
    ``distributed`` bounds what a search holds. Beside what a product itself takes that
    is ``max_basis`` + 1 vectors in ``basis_dtype`` on ``basis_device``, and
    max(2, k) in the dtype of the products; one more for ``v0``, and one for the vector
    that is multiplied where it is not a row of the basis as it is. Without these
    arguments it is up to n + 2 k + 14 vectors, with n of them in a basis: 4 k + 40, or
    max(20, 2 k + 10) where that were more than 2²⁵ numbers. Measured with D = 2e7 and
    k = 1: 25.3 vectors, 7.6 with ``max_basis=4``, 6.2 with a basis in torch.bfloat16.

    Few vectors take more products. For ``tol=1e-2`` on five spectra of D = 2000 it was
    1.1 to 1.6 times as many with k + 4 vectors as with 4 k + 40, and 1.3 to 2.3 times
    with k + 2. For a small ``tol``, where values are close to each other, it can be
    several times as many.

    Such a search looks for copies by a Lanczos process that keeps two vectors, and goes
    on with one fresh vector where there are any. At its end the rest of the basis is
    let go, and k products measure the eigenvalues and the residuals, which are summed
    in float64.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        Symmetric.
    k : int
        Number of pairs, 1 ≤ k ≤ D.
    which : {"LM", "LA", "SA", "BE"}, default="LA"
        Largest magnitude, largest algebraic, smallest algebraic, or both ends.
    tol : float, default=1e-4
        A pair has converged when ‖Au - λu‖ ≤ tol · max |λ|.
    v0 : Tensor of shape (D,), default=None
        Start vector; drawn when None.
    max_matvecs : int, default=None
        Products at most, not less than k, or than 2 k where residuals are measured by
        products; None allows 20 (k + 20). A search that ends there returns what it has
        found, with ``converged`` False.
    max_basis : int, default=None
        Vectors in the basis at most, more than k; None takes as many as stated above.
    basis_device : torch.device or str, default=None
        Where the basis lives and is made orthogonal, such as "cpu"; None is the device
        of the products.
    basis_dtype : torch.dtype or str, default=None
        Of the basis, no finer than that of the products, which None takes:
        torch.float32 where they are in float64, or torch.bfloat16. Rounding bounds the
        residuals that can be reached, relative to max |λ|: measured were 2e-8 with
        torch.float32 and 5e-4 with torch.bfloat16, and up to 3e-3 with a basis of k + 4
        vectors. So ``tol`` is at least the machine epsilon of ``basis_dtype``, 1.2e-7
        or 7.8e-3, and a search ends where rounding alone exceeds ``tol``.
    distributed : bool, default=False
        Share the basis out over the ranks of the default process group of
        ``torch.distributed``: a rank holds w = ⌈D/p⌉ numbers of a vector, and up to
        five whole ones while it multiplies. Every rank calls ``eigsh`` with the same
        operator and arguments, and a generator in the same state. Eigenvectors stay
        shared out: rank r returns its rows r w to r w + w - 1, of shape (w, k) but for
        the last ranks where p does not divide D; all else is the same on each rank.
    rng : torch.Generator, int or None, default=None
        For the start vector; None is random.
    verbose : bool, default=False
        Show a progress bar over ``max_matvecs`` with the number of converged pairs and
        the worst residual, relative to max |λ|.

    Returns
    -------
    Eigenpairs
        "LM" sorted by falling magnitude, "LA" and "BE" by falling value, "SA" by
        rising value.

    Raises
    ------
    ValueError
        If k, ``tol``, ``v0``, ``max_matvecs``, ``max_basis`` or ``basis_dtype`` does
        not fit, ``which`` is unknown or the operator holds several matrices.
    TypeError
        If ``v0`` is no tensor or ``distributed`` no bool.
    RuntimeError
        If ``distributed`` is True and there is no process group.
    torch.linalg.LinAlgError
        If a product is not finite.

    Warns
    -----
    ConvergenceWarning
        If pairs have not converged within ``max_matvecs``, if copies of repeated
        eigenvalues may be missing, or if the operator is not symmetric.

    References
    ----------
    .. [1] K. Wu and H. Simon, "Thick-restart Lanczos method for large symmetric
       eigenvalue problems", 2000, :doi:`10.1137/S0895479898334605`.

    Examples
    --------
    >>> from flatmin.linalg import DiagonalOperator
    >>> A = DiagonalOperator(torch.arange(500, dtype=torch.float64))
    >>> eigsh(A, 2, tol=1e-10, rng=0).eigenvalues
    tensor([499.0000, 498.0000], dtype=torch.float64)
    """
    check_one_matrix(operator, "eigsh")
    check_seed(rng)
    size = operator.shape[-1]
    check_known("which", which, WHICH)
    k = check_count("k", k, at_most=size, limit="D")
    tol = check_positive("tol", tol, or_zero=True)
    memory = basis_memory(
        operator,
        k,
        tol,
        max_basis=max_basis,
        basis_device=basis_device,
        basis_dtype=basis_dtype,
        distributed=distributed,
    )
    if max_matvecs is not None:
        # One for each pair, and where residuals are taken at the end another one.
        least = k if memory is None else 2 * k
        max_matvecs = check_count("max_matvecs", max_matvecs, at_least=least)
    start = None if v0 is None else _normalised(operator, v0)

    unit = UnitScaled(operator, None if memory is None else memory.ranks)
    if is_dense(size, k):
        result = _dense(unit, k, which, tol)
        if memory is not None:
            result = _shared_out(result, memory.ranks)
        return _rescaled(result, unit)
    limit = 20 * (k + 20) if max_matvecs is None else max_matvecs
    generator = make_generator(rng, operator.device)
    if memory is not None and rng is None:
        generator = memory.ranks.same_generator(generator)
    with progress_bar(limit, f"{k} eigenpairs", verbose=verbose) as bar:
        search: Any = {"limit": limit, "rng": generator, "bar": bar}
        if memory is not None:
            result = bounded_search(
                unit, k, which, tol, start=start, memory=memory, **search
            )
        else:
            if start is None:
                nothing = torch.empty(
                    0, size, dtype=operator.dtype, device=operator.device
                )
                start = random_direction(nothing, generator)
            search["n_basis"] = basis_size(size, k)
            result = thick_restart(unit, k, which, tol, start=start, **search)
    return _rescaled(result, unit)


def is_dense(size: int, k: int) -> bool:
    """Return whether all pairs are taken from the whole matrix, by D products."""
    # A basis of nearly D vectors is the whole space.
    return size <= max(64, basis_size(size, k) + k + 2)


def _shared_out(whole: Eigenpairs, ranks: VectorShards) -> Eigenpairs:
    """Return the pairs of rank 0, with the rank's own coordinates of the vectors."""
    vectors = ranks.of_first(whole.eigenvectors)
    return replace(
        whole,
        eigenvalues=ranks.of_first(whole.eigenvalues),
        eigenvectors=vectors[ranks.coordinates],
        residuals=ranks.of_first(whole.residuals),
        converged=ranks.of_first(whole.converged),
    )


def _rescaled(result: Eigenpairs, unit: UnitScaled) -> Eigenpairs:
    """Return a result for the operator behind the one of unit scale."""
    return replace(
        result,
        eigenvalues=unit.scale * result.eigenvalues,
        residuals=unit.scale * result.residuals,
    )


def _dense(operator: LinearOperator, k: int, which: Which, tol: float) -> Eigenpairs:
    before = operator.n_matvecs
    matrix = operator.to_dense().double()
    values, vectors = eigh((matrix + matrix.mT) / 2)
    spectral_norm = values.abs().max()
    wanted = order_eigenvalues(values, which, k)
    values, vectors = values[wanted], vectors[:, wanted]
    residuals = torch.linalg.vector_norm(matrix @ vectors - values * vectors, dim=0)
    # A tol below the rounding of the products says nothing about symmetry.
    enough = max(tol, 100 * torch.finfo(operator.dtype).eps)
    if bool((residuals > enough * spectral_norm).any()):
        _warn_unsymmetric(matrix, residuals / spectral_norm, tol)
    return Eigenpairs(
        values,
        vectors.to(operator.dtype),
        residuals,
        residuals <= tol * spectral_norm,
        operator.n_matvecs - before,
    )


def _normalised(operator: LinearOperator, v0: Tensor) -> Tensor:
    """Return the caller's start vector at length one, in the operator's dtype."""
    size = operator.shape[-1]
    if not isinstance(v0, Tensor):
        raise TypeError(f"v0 must be a Tensor of shape ({size},). Got {v0!r}.")
    check_floating("v0", v0)
    norm = torch.linalg.vector_norm(v0, dtype=torch.float64)
    if v0.shape != (size,) or not bool((norm > 0) & torch.isfinite(norm)):
        raise ValueError(
            f"v0 must be a finite, nonzero vector of shape ({size},). "
            f"Got shape {tuple(v0.shape)} with norm {float(norm):g}."
        )
    start: Tensor = v0 / norm
    return start.to(dtype=operator.dtype, device=operator.device)


def _warn_unsymmetric(matrix: Tensor, relative: Tensor, tol: float) -> None:
    norm = torch.linalg.matrix_norm(matrix)
    asymmetry = float(torch.linalg.matrix_norm(matrix - matrix.mT) / norm)
    warn_not_converged(
        f"{int((relative > tol).sum())} of {len(relative)} eigenpairs miss "
        f"tol={tol:g} (worst relative residual {float(relative.max()):.1e}) although "
        "the whole matrix was taken. eigsh needs a symmetric operator; here "
        f"‖A - Aᵀ‖ = {asymmetry:.1e} ‖A‖. Symmetrise the operator.",
        stacklevel=4,
    )
