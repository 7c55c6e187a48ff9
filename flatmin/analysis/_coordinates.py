"""The gradients of examples along a basis."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatmin._utils.progress import progress_bar
from flatmin.risk import EmpiricalRisk

__all__ = ["coordinates"]


def coordinates(
    risk: EmpiricalRisk, vectors: np.ndarray, indices: Tensor | None, *, shown: Any
) -> Tensor:
    """Return gᵢᵀuⱼ of all examples, by k passes.

    Parameters
    ----------
    risk : EmpiricalRisk
    vectors : ndarray of shape (d, k)
        The uⱼ as columns, on the coordinates of θ that are selected.
    indices : Tensor of shape (d,) or None
        Those coordinates; None is all.
    shown : bool or int
        Show a progress bar.

    Returns
    -------
    Tensor of shape (N, k)
        In float64.
    """
    columns = torch.tensor(vectors, dtype=risk.dtype, device=risk.device)
    k = columns.shape[1]
    point = risk.linearize(risk.params(), n_products=k or None)
    along = []
    with progress_bar(k, "coordinates", verbose=shown) as bar:
        for column in columns.unbind(1):
            u = column
            if indices is not None:
                u = column.new_zeros(risk.n_params)
                u[indices] = column
            along.append(point.directional_derivatives(u))
            bar.update()
    return torch.stack(along, 1).double()
