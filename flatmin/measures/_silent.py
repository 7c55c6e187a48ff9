"""Which coordinates of the gradient carry noise, and not rounding alone."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["noisy"]


def noisy(variances: Tensor, dtype: torch.dtype) -> Tensor:
    """Say at which coordinates the examples disagree by more than rounding.

    Where the loss does not depend on a coordinate, such as the bias of attention's
    keys, gradients are rounding, and so is every ratio or logarithm of them.

    Parameters
    ----------
    variances : Tensor of shape (\\*batch, D)
        diag(Σ), of all coordinates.
    dtype : torch.dtype
        In which the gradients were computed.

    Returns
    -------
    Tensor of shape (\\*batch, D)
        Of bools.
    """
    rounding = 10 * torch.finfo(dtype).eps  # relative to the largest gradients
    return variances > rounding**2 * variances.amax(-1, keepdim=True)
