"""Random test vectors with E z zᵀ = I."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg._operator import LinearOperator

__all__ = ["rademacher", "spherical"]


def rademacher(operator: LinearOperator, rng: torch.Generator) -> Tensor:
    """Return random signs: no variance from a diagonal.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    rng : torch.Generator
        On the operator's device.

    Returns
    -------
    Tensor of shape (D,)
    """
    size, device = operator.shape[-1], operator.device
    signs = torch.randint(0, 2, (size,), generator=rng, device=device)
    return (2 * signs - 1).to(operator.dtype)


def spherical(operator: LinearOperator, rng: torch.Generator) -> Tensor:
    """Return a vector of norm √D and uniform direction.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    rng : torch.Generator
        On the operator's device.

    Returns
    -------
    Tensor of shape (D,)
    """
    size = operator.shape[-1]
    z = torch.randn(size, generator=rng, dtype=operator.dtype, device=operator.device)
    scaled: Tensor = z * (size**0.5 / torch.linalg.vector_norm(z, dtype=torch.float64))
    return scaled.to(operator.dtype)
