"""Traces and norms from leading eigenpairs and an estimate of the rest.

The error of a random estimate is that of the matrix without its large eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from flatmin.linalg import (
    Eigenpairs,
    Estimate,
    LinearOperator,
    LowRankOperator,
    frobenius_norm,
    trace,
)

__all__ = ["deflated_norm", "deflated_trace"]

# Products after which the error is looked at: the rest may be small beside the pairs.
PILOT = 20


def deflated_trace(
    operator: LinearOperator,
    pairs: Eigenpairs,
    *,
    rtol: float,
    max_matvecs: int,
    rng: torch.Generator,
    verbose: bool = False,
) -> Estimate:
    """Return Tr(A).

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    pairs : Eigenpairs
        Some of its eigenpairs.
    rtol : float
        Relative standard error to reach.
    max_matvecs : int
        Products at most, beside a pilot of 20; D ≤ ``max_matvecs`` is exact.
    rng : torch.Generator
    verbose : bool, default=False

    Returns
    -------
    Estimate
    """
    rest = _rest(operator, pairs)
    look: Any = {"rng": rng, "verbose": verbose}

    def total(n_products: int) -> Estimate:
        result = trace(rest, rtol=rtol, max_matvecs=n_products, **look)
        value = pairs.eigenvalues.sum() + result.value.double()
        return Estimate(value, result.stderr.double(), result.n_matvecs)

    return _after_a_pilot(total, operator.shape[-1], rtol, max_matvecs)


def deflated_norm(
    operator: LinearOperator,
    pairs: Eigenpairs,
    *,
    rtol: float,
    max_matvecs: int,
    rng: torch.Generator,
    verbose: bool = False,
) -> Estimate:
    """Return ‖A‖_F.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    pairs : Eigenpairs
        Some of its eigenpairs.
    rtol : float
        Relative standard error to reach.
    max_matvecs : int
        Products at most, beside a pilot of 20; D ≤ ``max_matvecs`` is exact.
    rng : torch.Generator
    verbose : bool, default=False

    Returns
    -------
    Estimate
    """
    rest = _rest(operator, pairs)
    look: Any = {"rng": rng, "verbose": verbose}

    def total(n_products: int) -> Estimate:
        result = frobenius_norm(rest, rtol=rtol, max_matvecs=n_products, **look)
        left = result.value.double()
        value = (pairs.eigenvalues.square().sum() + left.square()).sqrt()
        stderr = torch.where(left > 0, result.stderr.double() * left / value, 0.0)
        return Estimate(value, stderr, result.n_matvecs)

    return _after_a_pilot(total, operator.shape[-1], rtol, max_matvecs)


def _after_a_pilot(
    total: Callable[[int], Estimate], size: int, rtol: float, max_matvecs: int
) -> Estimate:
    """Return the estimate of few products if that will do, else of all."""
    if not size > max_matvecs > PILOT:
        return total(max_matvecs)
    first = total(PILOT)
    if bool(first.stderr <= rtol * first.value.abs()):
        return first
    second = total(max_matvecs)
    return replace(second, n_matvecs=first.n_matvecs + second.n_matvecs)


def _rest(operator: LinearOperator, pairs: Eigenpairs) -> LinearOperator:
    """Return what the pairs leave of a matrix."""
    return operator - LowRankOperator(pairs.eigenvalues, pairs.eigenvectors)
