"""Tr(A): exact where that is cheap, else Hutchinson's estimate with its error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin.linalg._operator import LinearOperator

__all__ = ["TraceResult", "trace"]


@dataclass(frozen=True)
class TraceResult:
    """A trace and how well it is known."""

    value: Tensor  # () or (*batch)
    stderr: Tensor  # the same shape; 0 where the value is exact
    n_matvecs: int


def trace(
    operator: LinearOperator,
    *,
    rng: torch.Generator,
    rtol: float = 0.02,
    min_probes: int = 8,
    max_probes: int = 200,
) -> TraceResult:
    """Return Tr(A), exactly for D ≤ ``max_probes`` and for batches.

    Hutchinson's estimator (1/M) Σ zᵀAz with Rademacher z, drawn until its
    standard error (ddof 1) is at most ``rtol`` times its value.

    Parameters
    ----------
    operator : LinearOperator
        Symmetric.
    rng : torch.Generator
        For the probes, on the operator's device.
    rtol : float, default=0.02
        Relative standard error to reach.
    min_probes : int, default=8
        M at least; 2 or more, as one draw has no spread.
    max_probes : int, default=200
        M at most; the result's ``stderr`` then tells what was reached.

    Returns
    -------
    TraceResult

    Raises
    ------
    ValueError
        Unless 2 ≤ ``min_probes`` ≤ ``max_probes``.

    References
    ----------
    M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix
    for Laplacian smoothing splines", 1989, :doi:`10.1080/03610918908812806`.

    Examples
    --------
    >>> from flatmin.linalg import DenseOperator
    >>> A = DenseOperator(torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    >>> trace(A, rng=torch.Generator()).value
    tensor(6.)
    """
    if not 2 <= min_probes <= max_probes:
        raise ValueError(
            "The number of probes must satisfy 2 <= min_probes <= max_probes. Got "
            f"min_probes={min_probes} and max_probes={max_probes}."
        )
    before = operator.n_matvecs
    size = operator.shape[-1]
    if size <= max_probes or len(operator.shape) > 2:
        value = operator.trace()
        exact = torch.zeros_like(value)
        return TraceResult(value, exact, operator.n_matvecs - before)

    samples: list[Tensor] = []
    while len(samples) < max_probes:
        signs = torch.randint(0, 2, (size,), generator=rng, device=operator.device)
        z = (2 * signs - 1).to(operator.dtype)
        samples.append(torch.dot(z.double(), operator.matvec(z).double()))
        if len(samples) >= min_probes:
            draws = torch.stack(samples)
            stderr = draws.std() / len(samples) ** 0.5
            if stderr <= rtol * draws.mean().abs():
                break
    value = draws.mean().to(operator.dtype)
    stderr = stderr.to(operator.dtype)
    return TraceResult(value, stderr, operator.n_matvecs - before)
