"""What the matrices of a risk at a point share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from flatmin.curvature._finite import check_finite
from flatmin.curvature._point import Point, as_point
from flatmin.linalg import LinearOperator
from flatmin.risk import Risk

__all__ = ["LinearizedOperator", "RiskOperator"]


class RiskOperator(LinearOperator):
    """A symmetric (D, D) matrix of a risk at one θ, or a block on its diagonal.

    A subclass writes ``_product`` on whole vectors.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
        Copied. The first product prepares it for the others.
    select : str or list of str, default=None
        Names of parameters or of modules, with wildcards ("layers.0", "\\*.bias"): the
        matrix is then the block of these coordinates, in the order of θ. None takes
        all. Only a network's parameters have names.

    Attributes
    ----------
    indices : Tensor of shape (d,) or None
        The coordinates; None for all.

    Raises
    ------
    ValueError
        If a name fits no parameter, or the risk has no names.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.curvature import HessianOperator, RiskOperator
    >>> isinstance(HessianOperator(risk, theta), RiskOperator)
    True
    """

    def __init__(
        self, risk: Risk, theta: Point, *, select: str | list[str] | None = None
    ) -> None:
        theta = as_point(risk, theta)
        self.risk = risk
        self.theta = theta.detach().clone()
        self.indices: Tensor | None = None
        if select is not None:
            layout = getattr(risk, "layout", None)
            if layout is None:
                raise ValueError(
                    f"select={select!r} selects by name, and the parameters of a "
                    f"{type(risk).__name__} have none. Leave select at None."
                )
            self.indices = layout.indices(select).to(risk.device)
        super().__init__(
            risk.n_params if self.indices is None else len(self.indices),
            chains=tuple(theta.shape[:-1]),
            dtype=risk.dtype,
            device=risk.device,
        )

    @abstractmethod
    def _product(self, v: Tensor) -> Tensor:
        """Return the product of the whole matrix with ``v`` of shape (\\*chains, D)."""

    def _matvec(self, v: Tensor) -> Tensor:
        product = self._on_block(v)
        name = f"A product of {type(self).__name__}"
        return check_finite(name, product, self.risk, self.indices)

    def _on_block(self, v: Tensor) -> Tensor:
        if self.indices is None:
            return self._product(v)
        whole = torch.zeros_like(self.theta)
        whole[..., self.indices] = v
        return self._product(whole)[..., self.indices]


class LinearizedOperator(RiskOperator):
    """A matrix that is known by products at a prepared point of the risk.

    With ``select`` the point is prepared for the block alone, so that a product with a
    layer's block costs a fraction of one with the whole matrix. ``_product`` then takes
    vectors of the block.
    """

    def __init__(
        self,
        risk: Risk,
        theta: Point,
        *,
        select: str | list[str] | None = None,
        n_products: int | None = None,
    ) -> None:
        super().__init__(risk, theta, select=select)
        network: Any = risk  # where there is a name to select: no other risk has any
        block = {} if select is None else {"select": select}
        self._point = network.linearize(self.theta, n_products=n_products, **block)

    def _on_block(self, v: Tensor) -> Tensor:
        return self._product(v)
