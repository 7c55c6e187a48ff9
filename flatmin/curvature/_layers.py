"""The blocks of a matrix that belong to one layer each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatmin.curvature._risk_operator import RiskOperator
from flatmin.linalg import LinearOperator

__all__ = ["BlockDiagonalOperator"]


class BlockDiagonalOperator(LinearOperator):
    """The blocks of a matrix on its diagonal, one a layer, and zeros elsewhere.

    A layer's parameters are those that one module holds. A product takes as many
    products with the whole matrix as there are layers.

    Parameters
    ----------
    operator : RiskOperator
        Of a network's risk, on all its parameters.

    Attributes
    ----------
    blocks : dict of str to slice
        Where each layer lies in θ, by the name of its module.

    Raises
    ------
    ValueError
        If the parameters have no names, or are a selection.

    Examples
    --------
    >>> from torch import nn
    >>> from flatmin.curvature import HessianOperator
    >>> from flatmin.risk import EmpiricalRisk
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> risk = EmpiricalRisk(net, "squared_error", torch.ones(4, 2), torch.ones(4))
    >>> BlockDiagonalOperator(HessianOperator(risk, risk.params())).blocks
    {'0': slice(0, 9, None), '2': slice(9, 13, None)}
    """

    def __init__(self, operator: Any) -> None:
        if not isinstance(operator, RiskOperator):
            raise TypeError(
                "operator must be an operator of a risk, such as HessianOperator(risk, "
                f"theta). Got {type(operator).__name__}."
            )
        layout = getattr(operator.risk, "layout", None)
        if layout is None or operator.indices is not None:
            raise ValueError(
                "Blocks by layer need a matrix on all parameters of a network. Got "
                f"{operator!r} of a {type(operator.risk).__name__}."
            )
        super().__init__(
            operator.shape[-1], dtype=operator.dtype, device=operator.device
        )
        self.operator = operator
        self.blocks: dict[str, slice] = layout.layers()

    def _matvec(self, v: Tensor) -> Tensor:
        product = torch.zeros_like(v)
        for block in self.blocks.values():
            part = torch.zeros_like(v)
            part[block] = v[block]
            product[block] = self.operator.matvec(part)[block]
        return product
