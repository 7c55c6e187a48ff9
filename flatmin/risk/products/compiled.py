"""The second half of a graph, by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatmin._utils.quiet import ignored
from flatmin.risk.autodiff.compiler import load_compiler

__all__ = ["compiled"]


def compiled(use: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the same function of tensors, compiled when it is first called.

    Parameters
    ----------
    use : callable
        Of what is kept and a direction, as a
        :class:`~flatmin.risk.products.two_stage.TwoStage` has it.

    Returns
    -------
    callable
    """
    load_compiler()
    fast = torch.compile(use, fullgraph=True, dynamic=False)

    def call(*arguments: Tensor) -> Tensor:
        # Other strides, as a column of a matrix has, and another mode would be
        # compiled anew. The compiler warns of what it does itself.
        *kept, direction = arguments
        with torch.no_grad(), ignored():
            product: Tensor = fast(*kept, direction.contiguous())
        return product

    return call
