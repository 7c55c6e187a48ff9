"""Some eigenpairs of an operator, and the order that they are asked for in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from flatmin._utils.results import ShortRepr

__all__ = ["WHICH", "Eigenpairs", "Which", "order_eigenvalues"]

Which = Literal["LM", "LA", "SA", "BE"]
WHICH: tuple[Which, ...] = get_args(Which)


@dataclass(frozen=True, repr=False)
class Eigenpairs(ShortRepr):
    """Eigenpairs, how good they are and what they cost.

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import DiagonalOperator, eigsh
    >>> A = DiagonalOperator(torch.tensor([1.0, 2.0, 5.0]))
    >>> pairs = eigsh(A, 2, which="LA", rng=0)
    >>> pairs.eigenvalues
    tensor([5., 2.], dtype=torch.float64)
    >>> bool(pairs.converged.all())
    True
    """

    eigenvalues: Tensor  # (*chains, k), float64, in the order that was asked for
    eigenvectors: Tensor  # (*chains, D, k), columns, in the operator's dtype
    residuals: Tensor  # (*chains, k) ||A u - λ u||, from products, not a recurrence
    # (*chains, k) bool: residual <= tol * max |λ|, and a look for missing copies of
    # repeated eigenvalues came to its end
    converged: Tensor
    n_matvecs: int


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

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import order_eigenvalues
    >>> order_eigenvalues(torch.tensor([-3.0, 1.0, 2.0]), "LM", 2)
    tensor([0, 2])
    >>> order_eigenvalues(torch.tensor([-3.0, 1.0, 2.0]), "LA", 2)
    tensor([2, 1])
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
