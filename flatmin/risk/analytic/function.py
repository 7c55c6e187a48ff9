"""A potential of somebody's own as a risk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jacrev

from flatmin._utils.arrays import check_floating, to_array
from flatmin._utils.callables import check_callable
from flatmin._utils.messages import first_line
from flatmin.risk.analytic.analytic_risk import AnalyticRisk
from flatmin.risk.trials import tolerance

__all__ = ["FunctionRisk"]


class FunctionRisk(AnalyticRisk):
    """L(θ) = f(θ), with derivatives by autograd.

    It has one example, so that Σ = 0: SGD's noise vanishes, and so does that of each
    law that takes its size from Σ. Those with a size of their own work: ``gld_const``,
    ``anti_pgd``, and with ``match="none"`` ``gld_hessian`` and its kin. f has no
    outputs, and so no Gauss-Newton matrix: ``gld_ggn`` is refused.

    Parameters
    ----------
    f : callable
        Takes θ of shape (\\*chains, D), returns the values of shape (\\*chains), each
        from its own chain. Twice differentiable by PyTorch.
    start : array-like or Tensor of shape (D,)
        A point, which :meth:`params` returns. It decides D, dtype and device; of
        whole numbers or a list the dtype is PyTorch's default.

    Raises
    ------
    TypeError
        If f returns no Tensor, or ``start`` is none.
    ValueError
        If f does not take chains, or one depends on another.

    See Also
    --------
    flatmin.dynamics.simulate : Runs many chains on it.

    Examples
    --------
    >>> def f(theta):
    ...     return (theta[..., 0] - 1) ** 2 + 5 * theta[..., 1] ** 2
    >>> risk = FunctionRisk(f, [3.0, 1.0])
    >>> risk.value_and_gradient(risk.params())
    (tensor(9.), tensor([ 4., 10.]))
    >>> risk.hessian(torch.zeros(2))
    tensor([[ 2.,  0.],
            [ 0., 10.]])
    """

    n_examples = 1

    def __init__(self, f: Callable[[Tensor], Tensor], start: Any) -> None:
        check_callable("f", f, "theta")
        self._start = _as_point(start)
        self.f = f
        self.n_params = len(self._start)
        self.dtype, self.device = self._start.dtype, self._start.device
        self._check_chains()
        self._check_derivatives()

    def params(self) -> Tensor:
        """Return the start, shape (D,); a copy."""
        return self._start.clone()

    def example_losses(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_losses`; one example."""
        self._check(theta)
        return self._values(theta).unsqueeze(-1)

    def example_gradients(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_gradients`; one example."""
        self._check(theta)
        slope: Tensor = grad(lambda theta: self._values(theta).sum())(theta)
        return slope.unsqueeze(-2)

    def hessian(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.hessian`; D backward passes."""
        self._check(theta)
        slope = grad(lambda theta: self._values(theta).sum())
        flat = theta.reshape(-1, self.n_params)
        # A row of H in all chains at once, since no chain depends on another.
        rows = jacrev(lambda theta: slope(theta).sum(0))(flat)  # (D, chains, D)
        hessian: Tensor = rows.movedim(1, 0).reshape(*theta.shape, self.n_params)
        return hessian

    def gauss_newton_roots(self, theta: Tensor) -> NoReturn:
        """Raise ValueError, for there are no outputs."""
        self.check_gauss_newton()

    def check_gauss_newton(self) -> NoReturn:
        """Raise ValueError: f has no outputs."""
        raise ValueError(
            "The Gauss-Newton matrix splits a loss into outputs and what is made of "
            "them. Got a FunctionRisk, whose f(theta) has no outputs; use the Hessian, "
            "as method='gld_hessian' with match='none' does."
        )

    def _values(self, theta: Tensor) -> Tensor:
        values = self.f(theta)
        if not isinstance(values, Tensor):
            raise TypeError(
                f"f must return a Tensor. Got {type(values).__name__}; use functions "
                "of torch."
            )
        if values.shape != theta.shape[:-1]:
            raise ValueError(
                "f must return one value for each chain: for θ of shape "
                f"{tuple(theta.shape)} values of shape {tuple(theta.shape[:-1])}. Got "
                f"{tuple(values.shape)}; index θ as theta[..., 0], and sum over "
                "dim=-1."
            )
        return values

    def _check_chains(self) -> None:
        """Try f on one θ and on several: no chain may see another."""
        near = torch.randn(
            (2, 3, self.n_params),
            generator=torch.Generator().manual_seed(0),
            device="cpu",
        )
        scale = 1 + self._start.abs()
        chains = self._start + scale * near.to(self._start) / 8
        chains = torch.cat([self._start.expand(2, 1, -1), chains], 1)
        before = chains.clone()
        try:
            alone = self._values(self._start.clone())
            together = self._values(chains)
            apart = torch.stack([self._values(t.clone()) for t in before.flatten(0, 1)])
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"f must take θ of shape ({self.n_params},) and of shape (*chains, "
                f"{self.n_params}). It raised {type(error).__name__}: "
                f"{first_line(error)}. Index θ as theta[..., 0]."
            ) from error
        if alone.dtype != self.dtype:
            raise TypeError(
                f"f must return the dtype of θ, {self.dtype}. Got {alone.dtype}; make "
                "the constants in it of that dtype, or convert start."
            )
        if not torch.equal(chains, before):
            raise ValueError(
                "f must leave θ as it is. Got one that writes into it; work on "
                "theta.clone()."
            )
        off = (together.flatten() - apart).abs()
        limit = tolerance(self.dtype, 0) * (1 + apart.abs())
        if bool((off > limit).any()):
            raise ValueError(
                "Each value of f must depend on its own chain alone, and be the same "
                "at each call. Got values that change by "
                f"{float(off.max()):.1e} beside others; sum over dim=-1 and not over "
                "all of θ, and draw nothing at random."
            )

    def _check_derivatives(self) -> None:
        try:
            self.hessian(self._start)
        except RuntimeError as error:
            raise ValueError(
                "f must be made of functions of torch that have two derivatives, "
                "without branches on values. PyTorch raised "
                f"{type(error).__name__}: {first_line(error)}."
            ) from error


def _as_point(start: Any) -> Tensor:
    """Return a tensor of its own, of a floating dtype."""
    if not isinstance(start, Tensor):
        to_array("start", start, (None,))  # or raise
        numbers = np.asarray(start) if hasattr(start, "__array__") else start
        start = torch.as_tensor(numbers)
        if not start.is_floating_point():
            start = start.to(torch.get_default_dtype())
    check_floating("start", start, 1)
    if start.ndim != 1 or not len(start):
        raise ValueError(
            "start must have shape (D,), one number for each parameter. Got "
            f"{tuple(start.shape)}."
        )
    if not bool(start.isfinite().all()):
        raise ValueError("start must be finite. Got NaN or infinity.")
    point: Tensor = start.detach().clone()
    return point
