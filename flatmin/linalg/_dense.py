"""Small symmetric eigenproblems."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

__all__ = ["check_finite_products", "eigh"]


def check_finite_products(numbers: Tensor) -> None:
    """Raise if numbers made of an operator's products are not finite.

    Parameters
    ----------
    numbers : Tensor

    Raises
    ------
    torch.linalg.LinAlgError
        If one is NaN or infinite.
    """
    if not bool(torch.isfinite(numbers).all()):
        raise LinAlgError(
            "Products of the operator must be finite. Got NaN or infinity; look at "
            "the point at which the operator is taken."
        )


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of a matrix made of an operator's products.

    Parameters
    ----------
    matrix : Tensor of shape (\\*chains, n, n)
        Symmetric.

    Returns
    -------
    values : Tensor of shape (\\*chains, n)
        Rising.
    vectors : Tensor of shape (\\*chains, n, n)
        Columns.

    Raises
    ------
    torch.linalg.LinAlgError
        If an entry is not finite. LAPACK would blame the conditioning, if it
        returned at all.
    """
    check_finite_products(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors
