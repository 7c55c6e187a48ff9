"""A model, a loss and some examples again in float64, where differences are exact."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk.chunks import Chunk
from flatmin.risk.losses import ExampleLoss

__all__ = ["chunk_in_float64", "loss_in_float64"]


def loss_in_float64(loss: ExampleLoss) -> ExampleLoss:
    """Return a copy of a loss whose weights, where it has some, are in float64.

    Parameters
    ----------
    loss : ExampleLoss

    Returns
    -------
    ExampleLoss
    """
    return loss.to(dtype=torch.float64)


def chunk_in_float64(chunk: Chunk) -> Chunk:
    """Return the same examples; integers stay integers.

    Parameters
    ----------
    chunk : Chunk

    Returns
    -------
    Chunk
    """
    weights = None if chunk.weights is None else chunk.weights.double()
    return Chunk(_double(chunk.X), _double(chunk.y), weights, chunk.rows)


def _double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor
