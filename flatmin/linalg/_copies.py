"""How to look for missing copies of repeated eigenvalues, and what tells them."""

from __future__ import annotations

import math

from torch import Tensor

from flatmin.linalg._eigenpairs import Which, order_eigenvalues

__all__ = ["differ", "has_copies", "n_search_steps", "search_gaps"]


def has_copies(found: Tensor, allowed: Tensor) -> bool:
    """Return whether found values come more than once.

    Parameters
    ----------
    found : Tensor of shape (k,)
    allowed : Tensor of shape ()
        How far values may be off.

    Returns
    -------
    bool
    """
    # Rounding can bring in copies, too; values of a crowd are not as equal.
    apart = found.sort().values.diff()
    return bool((apart <= allowed / 100).any())


def search_gaps(
    found: Tensor, ritz: Tensor, which: Which, allowed: Tensor, *, repeated: bool
) -> list[float]:
    """Return how far what is looked for stands out from the rest, a look each.

    Parameters
    ----------
    found : Tensor of shape (k,)
        Values that are wanted.
    ritz : Tensor of shape (n,)
        All values that are known.
    which : {"LM", "LA", "SA", "BE"}
    allowed : Tensor of shape ()
        How far values may be off.
    repeated : bool
        Whether there are copies.

    Returns
    -------
    list of float
        Over the range of the rest.
    """
    # One start vector sees one vector of every eigenspace, so a repeated eigenvalue
    # can be missing although all residuals are small: a short look for what stands
    # out, and once there are copies a long one for the rest.
    return [0.5, _gap(found, ritz, which, allowed)] if repeated else [0.5]


def _gap(found: Tensor, ritz: Tensor, which: Which, allowed: Tensor) -> float:
    """Return how far the last wanted value is from others, over the rest's range."""
    # A missing copy of one of those has let the last one in.
    sides = [found.abs(), ritz.abs()] if which == "LM" else [found, ritz]
    gaps = []
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
            gaps.append(float(above.min() / width.clamp(min=allowed)))
    return min(gaps, default=0.5)


def n_search_steps(size: int, gap: float) -> int:
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


def differ(seen: Tensor, found: Tensor, which: Which, allowed: Tensor) -> bool:
    """Return whether wanted values differ from found ones by more than their errors.

    Parameters
    ----------
    seen : Tensor of shape (n,)
        Values, with those that a look has seen; n ≥ k.
    found : Tensor of shape (k,)
    which : {"LM", "LA", "SA", "BE"}
    allowed : Tensor of shape ()

    Returns
    -------
    bool
    """
    now = seen[order_eigenvalues(seen, which, len(found))]
    if which == "LM":  # of λ and -λ either will do
        now, found = now.abs(), found.abs()
    change = (now.sort().values - found.sort().values).abs().max()
    return bool(change > allowed)
