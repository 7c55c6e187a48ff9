"""The Frobenius norms of SGD's noise and of a law's, for ``match="frobenius"``."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg import LinearOperator

__all__ = ["frobenius_norms"]


def frobenius_norms(
    operator: LinearOperator, n_probes: int | None, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return ‖C‖_F of each chain, with its standard error.

    Without waiting for the device, and for many chains, unlike
    :func:`flatmin.linalg.frobenius_norm`. ‖C‖²_F is the mean of ‖Cz‖² over vectors z of
    random signs, exactly so for a diagonal C.

    Parameters
    ----------
    operator : LinearOperator of shape (\\*chains, D, D)
        C.
    n_probes : int or None
        Products with C; None is exact, by the matrix in full.
    rng : torch.Generator

    Returns
    -------
    value : Tensor of shape (\\*chains)
        In float64, as the next.
    stderr : Tensor of shape (\\*chains)
    """
    if n_probes is None:
        norm = torch.linalg.matrix_norm(operator.to_dense().double())
        return norm, torch.zeros_like(norm)
    squares = []
    for _ in range(n_probes):
        shape = operator.shape[:-1]
        signs = torch.randint(0, 2, shape, generator=rng, device=operator.device)
        product = operator.matvec((2 * signs - 1).to(operator.dtype))
        squares.append(product.double().square().sum(-1))
    found = torch.stack(squares)
    value = found.mean(0).sqrt()
    stderr = found.std(0) / n_probes**0.5 / (2 * value)
    return value, torch.where(value > 0, stderr, 0)
