"""What the matrices of a risk at a point share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from flatmin.curvature._finite import check_finite
from flatmin.curvature._point import Point, as_point
from flatmin.linalg import LinearOperator
from flatmin.risk import Risk

__all__ = ["RiskOperator"]


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
        if self.indices is None:
            product = self._product(v)
        else:
            whole = torch.zeros_like(self.theta)
            whole[..., self.indices] = v
            product = self._product(whole)[..., self.indices]
        name = f"A product of {type(self).__name__}"
        return check_finite(name, product, self.risk, self.indices)
