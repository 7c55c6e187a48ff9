"""Extreme eigenpairs of a symmetric operator by thick-restart Lanczos."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from flatmin._utils.arrays import check_floating
from flatmin._utils.numbers import check_count, check_positive
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import check_seed, make_generator
from flatmin._utils.results import ShortRepr
from flatmin.linalg._band_lanczos import BandLanczos
from flatmin.linalg._dense import eigh
from flatmin.linalg._operator import LinearOperator, check_one_matrix
from flatmin.linalg._orthogonal import random_direction
from flatmin.linalg._unit_scale import UnitScaled

__all__ = ["Eigenpairs", "Which", "eigsh", "order_eigenvalues"]

Which = Literal["LM", "LA", "SA", "BE"]

# Numbers in a basis (128 MiB in float32) up to which it is larger than it has to be:
# most solves then need no restart, which can stall on eigenvalues inside of the
# spectrum, as the smaller ones of largest magnitude are.
_ROOMY = 1 << 25


@dataclass(frozen=True, repr=False)
class Eigenpairs(ShortRepr):
    """Eigenpairs, how good they are and what they cost."""

    eigenvalues: Tensor  # (*chains, k), float64, in the order that was asked for
    eigenvectors: Tensor  # (*chains, D, k), columns, in the operator's dtype
    residuals: Tensor  # (*chains, k) ||A u - λ u||, from products, not a recurrence
    # (*chains, k) bool: residual <= tol * max |λ|, and a look for missing copies of
    # repeated eigenvalues came to its end
    converged: Tensor
    n_matvecs: int


def eigsh(
    operator: LinearOperator,
    k: int,
    *,
    which: Which = "LA",
    tol: float = 1e-4,
    v0: Tensor | None = None,
    max_matvecs: int | None = None,
    rng: torch.Generator | int | None = None,
    verbose: bool = False,
) -> Eigenpairs:
    """Return k extreme eigenpairs of a symmetric operator.

    Lanczos with a full, twice-applied orthogonalisation (no ghosts) and a thick
    restart [1]_. An invariant subspace is left through a random vector, so
    rank-deficient operators are no special case. For D ≤ 64, or where the basis would
    be nearly the whole space, the matrix is formed by D products and handed to a dense
    solver.

    The Krylov space of one vector has one vector of each eigenspace, so a copy of a
    repeated eigenvalue can be missing although all residuals are small. Converged
    pairs are therefore held against a second random vector, in as many products as
    show a copy that stands out from the rest by half of the rest's range. Once there
    is one, every further set of pairs is held against a random vector for as long as
    shows a missing copy of any wanted value that differs from the last one by more
    than 2 ``tol`` · max |λ|; where products do not suffice for that, no pair counts as
    converged. What this does not promise: that an eigenvalue of a crowd, closer to the
    next than ``tol`` · max |λ| tells apart, or the only copy that stands out by little,
    is not missing.

    Residuals are computed: for every basis vector v, the product A v that was taken
    is kept as its measured inner products with the basis and the norm of the rest,
    and a Ritz vector is a combination of basis vectors. So ‖Au - λu‖ needs no
    further product, and agrees with one taken afterwards to the rounding of the
    operator's dtype. An operator that is not symmetric shows in its residuals and does
    not converge.

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
        Products at most, not less than k; None allows 20 (k + 20).
    rng : torch.Generator, int or None, default=None
        For the start vector; None is random.
    verbose : bool, default=False
        Show a progress bar over ``max_matvecs`` with the number of converged pairs.

    Returns
    -------
    Eigenpairs
        "LM" sorted by falling magnitude, "LA" and "BE" by falling value, "SA" by
        rising value.

    Raises
    ------
    ValueError
        If k, ``tol``, ``v0`` or ``max_matvecs`` does not fit, ``which`` is unknown or
        the operator holds several matrices.
    TypeError
        If ``v0`` is no tensor.
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
    if not isinstance(which, str) or which not in ("LM", "LA", "SA", "BE"):
        raise ValueError(f"which must be 'LM', 'LA', 'SA' or 'BE'. Got {which!r}.")
    k = check_count("k", k, at_most=size, limit="D")
    tol = check_positive("tol", tol, or_zero=True)
    if max_matvecs is not None:
        # One for each pair.
        max_matvecs = check_count("max_matvecs", max_matvecs, at_least=k)
    start = None if v0 is None else _normalised(operator, v0)

    n_basis = max(20, 2 * k + 10)
    if (4 * k + 40) * size <= _ROOMY:
        n_basis = 4 * k + 40
    # A basis of nearly D vectors is the whole space: then D products give all pairs.
    unit = UnitScaled(operator)
    if size <= max(64, n_basis + k + 2):
        return _rescaled(_dense(unit, k, which, tol), unit)
    limit = 20 * (k + 20) if max_matvecs is None else max_matvecs
    generator = make_generator(rng, operator.device)
    if start is None:
        nothing = torch.empty(0, size, dtype=operator.dtype, device=operator.device)
        start = random_direction(nothing, generator)
    with progress_bar(limit, f"{k} eigenpairs", verbose=verbose) as bar:
        result = _thick_restart(
            unit,
            k,
            which,
            tol,
            start=start,
            limit=limit,
            n_basis=n_basis,
            rng=generator,
            bar=bar,
        )
    return _rescaled(result, unit)


def order_eigenvalues(values: Tensor, which: Which, k: int) -> Tensor:
    """Return the indices of the k wanted values, in the order of the result.

    Parameters
    ----------
    values : Tensor of shape (\\*chains, n)
        Eigenvalues in any order.
    which : {"LM", "LA", "SA", "BE"}
        As in :func:`eigsh`.
    k : int
        At most n.

    Returns
    -------
    Tensor of shape (\\*chains, k)
        For ``take_along_dim``.
    """
    if which == "LM":
        return values.abs().argsort(dim=-1, descending=True)[..., :k]
    if which == "SA":
        return values.argsort(dim=-1)[..., :k]
    falling = values.argsort(dim=-1, descending=True)
    if which == "LA":
        return falling[..., :k]
    n_low = k // 2
    n = values.shape[-1]
    return torch.cat([falling[..., : k - n_low], falling[..., n - n_low :]], dim=-1)


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


def _thick_restart(
    operator: LinearOperator,
    k: int,
    which: Which,
    tol: float,
    *,
    start: Tensor,
    limit: int,
    n_basis: int,
    rng: torch.Generator,
    bar: Any,
) -> Eigenpairs:
    # An eigenvalue can be repeated k times, and each copy takes a look or two.
    most_starts = 2 * k + 8
    process = BandLanczos(
        operator, start, n_basis=n_basis, n_starts=most_starts, rng=rng
    )
    repeated = False
    while True:
        if process.is_full:
            _shrink(process, k, which)
        process.advance()
        bar.update()
        spent = process.n_matvecs >= limit
        beyond = process.n - k
        if beyond < 0 or not (process.is_full or spent or beyond % 2 == 0):
            continue

        ritz, S, residuals = process.ritz()
        wanted = order_eigenvalues(ritz, which, k)
        scale = ritz.abs().max()
        done = residuals[wanted] <= tol * scale
        if not bar.disable:
            bar.set_postfix(converged=int(done.sum()))
        all_done = bool(done.all())
        if not (spent or all_done):
            continue
        result = Eigenpairs(
            ritz[wanted],
            process.vectors(S[:, wanted]),
            residuals[wanted],
            done,
            process.n_matvecs,
        )
        if all_done:
            # One start vector sees one vector of every eigenspace, so a repeated
            # eigenvalue can be missing although all residuals are small: a short look
            # for what stands out, and once there are copies a long one for the rest.
            allowed = 2 * tol * scale
            # Rounding can bring in copies, too; values of a crowd are not as equal.
            apart = result.eigenvalues.sort().values.diff()
            repeated = repeated or bool((apart <= allowed / 100).any())
            gaps = [0.5, _gap(result, ritz, which, allowed)] if repeated else [0.5]
            outcome = _search_copies(
                process, result, which=which, allowed=allowed, gaps=gaps, limit=limit
            )
            bar.update(process.n_matvecs - result.n_matvecs)
            result = replace(result, n_matvecs=process.n_matvecs)
            if outcome == "nothing":
                return result
            if outcome == "copies" and process.n_matvecs < limit:
                repeated = True
                continue
            result = replace(result, converged=torch.zeros_like(done))
        _warn_unless_converged(result, tol, scale)
        return result


def _search_copies(
    process: BandLanczos,
    result: Eigenpairs,
    *,
    which: Which,
    allowed: Tensor,
    gaps: list[float],
    limit: int,
) -> Literal["copies", "nothing", "cut short"]:
    """Look for missing copies of wanted eigenvalues from fresh vectors, one a gap."""
    k = len(result.eigenvalues)
    for gap in gaps:
        length = _n_search_steps(process.V.shape[1], gap)
        if process.p + 1 >= process.n_starts:
            return "cut short"
        if process.n + length > process.n_basis:
            _shrink(process, k, which)
            process.widen(process.n + length)
        n_probes = min(length, limit - process.n_matvecs)
        if n_probes < 1:
            return "cut short"
        seen = process.extend_from_random(n_probes)
        seen = seen[order_eigenvalues(seen, which, k)]
        if _differ(seen, result, which, allowed):
            return "copies"
        if n_probes < length:
            return "cut short"
    return "nothing"


def _gap(result: Eigenpairs, ritz: Tensor, which: Which, allowed: Tensor) -> float:
    """Return how far the last wanted value is from others, over the rest's range."""
    # A missing copy of one of those has let the last one in.
    values = result.eigenvalues
    sides = [values.abs(), ritz.abs()] if which == "LM" else [values, ritz]
    found = []
    for sign in {"SA": (-1,), "BE": (1, -1)}.get(which, (1,)):
        wanted, every = (sign * side for side in sides)
        if which == "BE":
            wanted = wanted[wanted > every.mean()]
        if not len(wanted):  # where all values are equal, or there are none at this end
            continue
        last = wanted.min()
        above = wanted[wanted - last > allowed] - last
        width = 2 * last if which == "LM" else last - every.min()
        if len(above):
            found.append(float(above.min() / width.clamp(min=allowed)))
    return min(found, default=0.5)


def _n_search_steps(size: int, gap: float) -> int:
    """Return how many products to spend on looking for repeated eigenvalues.

    Parameters
    ----------
    size : int
        D.
    gap : float
        How far a value stands out from the rest, over the range of the rest.

    Returns
    -------
    int
    """
    # By the bound of Kaniel and Paige n products from a random vector, whose share in
    # it is 1/√D, see such a value to a half of the gap where the Chebyshev polynomial
    # cosh((n - 1) arccosh(1 + 2 gap)) is √(2 D (1 + 1/gap)).
    height = (2 * size * (1 + 1 / gap)) ** 0.5
    return 1 + round(math.acosh(height) / math.acosh(1 + 2 * gap))


def _shrink(process: BandLanczos, k: int, which: Which) -> None:
    """Restart with the wanted Ritz vectors and half of the room that is left."""
    ritz, S, _ = process.ritz()
    kept = order_eigenvalues(ritz, which, k + (process.n_basis - k) // 2)
    process.restart(S[:, kept], ritz[kept])


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


def _differ(now: Tensor, found: Eigenpairs, which: Which, allowed: Tensor) -> bool:
    """Return whether wanted values differ from found ones by more than their errors."""
    before = found.eigenvalues
    if which == "LM":  # of λ and -λ either will do
        now, before = now.abs(), before.abs()
    change = (now.sort().values - before.sort().values).abs().max()
    return bool(change > allowed)


def _warn_unless_converged(result: Eigenpairs, tol: float, scale: Tensor) -> None:
    if bool(result.converged.all()):
        return
    failed, k = int((~result.converged).sum()), len(result.converged)
    worst = float(result.residuals.max() / scale)
    why = f"worst relative residual {worst:.1e}"
    if worst <= tol:
        why = "copies of repeated eigenvalues may be missing"
    warnings.warn(
        f"{failed} of {k} eigenpairs have not converged to tol={tol:g} within "
        f"{result.n_matvecs} products ({why}). Raise max_matvecs or tol, or ask for "
        "fewer pairs.",
        ConvergenceWarning,
        stacklevel=4,
    )


def _warn_unsymmetric(matrix: Tensor, relative: Tensor, tol: float) -> None:
    norm = torch.linalg.matrix_norm(matrix)
    asymmetry = float(torch.linalg.matrix_norm(matrix - matrix.mT) / norm)
    warnings.warn(
        f"{int((relative > tol).sum())} of {len(relative)} eigenpairs miss "
        f"tol={tol:g} (worst relative residual {float(relative.max()):.1e}) although "
        "the whole matrix was taken. eigsh needs a symmetric operator; here "
        f"‖A - Aᵀ‖ = {asymmetry:.1e} ‖A‖. Symmetrise the operator.",
        ConvergenceWarning,
        stacklevel=4,
    )
