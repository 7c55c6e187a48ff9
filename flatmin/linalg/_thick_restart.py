"""Lanczos with a thick restart, and the search for copies of repeated eigenvalues."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.linalg._band_lanczos import BandLanczos
from flatmin.linalg._convergence import warn_not_converged
from flatmin.linalg._eigenpairs import Eigenpairs, Which, order_eigenvalues
from flatmin.linalg._operator import LinearOperator

__all__ = ["thick_restart"]


def thick_restart(
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
    """Return k extreme eigenpairs, as :func:`eigsh` describes.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    k : int
    which : {"LM", "LA", "SA", "BE"}
    tol : float
    start : Tensor of shape (D,)
        Of length one.
    limit : int
        Products at most.
    n_basis : int
        Vectors in the basis, well below D.
    rng : torch.Generator
        For fresh vectors, on the operator's device.
    bar : tqdm.tqdm
        Counts products.

    Returns
    -------
    Eigenpairs
    """
    # An eigenvalue can be repeated k times, and each copy takes a look or two.
    most_starts = 2 * k + 8
    process = BandLanczos(
        operator, start, n_basis=n_basis, n_starts=most_starts, rng=rng
    )
    repeated = False
    while True:
        spent = _advance(process, k, which, limit=limit, bar=bar)
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
            repeated = repeated or _has_copies(result, allowed)
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


def _advance(
    process: BandLanczos, k: int, which: Which, *, limit: int, bar: Any
) -> bool:
    """Take products until the Ritz pairs are worth a look; say if none are left."""
    while True:
        if process.is_full:
            _shrink(process, k, which)
        process.advance()
        bar.update()
        spent, beyond = process.n_matvecs >= limit, process.n - k
        if beyond >= 0 and (process.is_full or spent or beyond % 2 == 0):
            return spent


def _has_copies(result: Eigenpairs, allowed: Tensor) -> bool:
    # Rounding can bring in copies, too; values of a crowd are not as equal.
    apart = result.eigenvalues.sort().values.diff()
    return bool((apart <= allowed / 100).any())


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
    warn_not_converged(
        f"{failed} of {k} eigenpairs have not converged to tol={tol:g} within "
        f"{result.n_matvecs} products ({why}). Raise max_matvecs or tol, or ask for "
        "fewer pairs.",
        stacklevel=4,
    )
