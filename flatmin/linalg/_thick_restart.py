"""Lanczos with a thick restart, and the search for copies of repeated eigenvalues."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.linalg._band_lanczos import BandLanczos
from flatmin.linalg._bounded_lanczos import BoundedLanczos
from flatmin.linalg._convergence import warn_not_converged
from flatmin.linalg._copies import differ, has_copies, n_search_steps, search_gaps
from flatmin.linalg._eigenpairs import Eigenpairs, Which, order_eigenvalues
from flatmin.linalg._operator import LinearOperator

__all__ = ["advance", "shrink", "tell", "thick_restart", "warn_unless_converged"]


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
        spent = advance(process, k, which, limit=limit, bar=bar)
        ritz, S, residuals = process.ritz()
        wanted = order_eigenvalues(ritz, which, k)
        scale = ritz.abs().max()
        done = residuals[wanted] <= tol * scale
        tell(bar, done, residuals[wanted] / scale)
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
            allowed = 2 * tol * scale
            found = result.eigenvalues
            repeated = repeated or has_copies(found, allowed)
            gaps = search_gaps(found, ritz, which, allowed, repeated=repeated)
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
        warn_unless_converged(result, tol, scale)
        return result


def advance(
    process: BandLanczos | BoundedLanczos,
    k: int,
    which: Which,
    *,
    limit: int,
    bar: Any,
) -> bool:
    """Take products until the Ritz pairs are worth a look; say if none are left.

    Parameters
    ----------
    process : BandLanczos or BoundedLanczos
    k : int
    which : {"LM", "LA", "SA", "BE"}
    limit : int
        Products at most.
    bar : tqdm.tqdm
        Counts products.

    Returns
    -------
    bool
    """
    while True:
        if process.is_full:
            shrink(process, k, which)
        process.advance()
        bar.update()
        spent, beyond = process.n_matvecs >= limit, process.n - k
        if beyond >= 0 and (process.is_full or spent or beyond % 2 == 0):
            return spent


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
        length = n_search_steps(process.V.shape[1], gap)
        if process.p + 1 >= process.n_starts:
            return "cut short"
        if process.n + length > process.n_basis:
            shrink(process, k, which)
            process.widen(process.n + length)
        n_probes = min(length, limit - process.n_matvecs)
        if n_probes < 1:
            return "cut short"
        seen = process.extend_from_random(n_probes)
        if differ(seen, result.eigenvalues, which, allowed):
            return "copies"
        if n_probes < length:
            return "cut short"
    return "nothing"


def shrink(process: BandLanczos | BoundedLanczos, k: int, which: Which) -> None:
    """Restart with the wanted Ritz vectors and half of the room that is left.

    Parameters
    ----------
    process : BandLanczos or BoundedLanczos
    k : int
    which : {"LM", "LA", "SA", "BE"}
    """
    ritz, S, _ = process.ritz()
    kept = order_eigenvalues(ritz, which, k + (process.n_basis - k) // 2)
    process.restart(S[:, kept], ritz[kept])


def tell(bar: Any, done: Tensor, relative: Tensor) -> None:
    """Show how far a search is.

    Parameters
    ----------
    bar : tqdm.tqdm
    done : Tensor of shape (k,)
        Which pairs have converged.
    relative : Tensor of shape (k,)
        Residuals over max |λ|.
    """
    if not bar.disable:  # else a GPU would be waited for
        worst = f"{float(relative.max()):.1e}"
        bar.set_postfix(converged=int(done.sum()), residual=worst)


def warn_unless_converged(
    result: Eigenpairs, tol: float, scale: Tensor, *, hint: str = ""
) -> None:
    """Warn where pairs have not converged, with why and what to do.

    Parameters
    ----------
    result : Eigenpairs
    tol : float
    scale : Tensor of shape ()
        max |λ|.
    hint : str, default=""
        What else there is to do.

    Warns
    -----
    ConvergenceWarning
    """
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
        f"fewer pairs.{hint}",
        stacklevel=4,
    )
