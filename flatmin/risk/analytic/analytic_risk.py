"""Risks with closed-form H and Σ, whose θ may be many chains at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.func import vjp

from flatmin._utils.arrays import check_tensor
from flatmin._utils.numbers import check_count
from flatmin._utils.random import check_rng
from flatmin.risk.arguments import (
    as_indices,
    check_point,
    check_products,
    within,
)
from flatmin.risk.example_sums.moments import mean_and_squares

__all__ = ["AnalyticRisk"]


class AnalyticRisk(ABC):
    """L(θ) = (1/N) Σ ℓᵢ(θ) given by formulas; θ has shape ``(*chains, D)``.

    A subclass writes the per-example losses and gradients, H and the roots of G; all
    words of the risk follow. Every (N, D) array is held in full: meant for small D.

    Attributes
    ----------
    n_params : int
        D.
    n_examples : int
        N.
    dtype : torch.dtype
    device : torch.device
    n_outputs : int
        Always 1: Tr(G) costs no more than one estimate.
    l2 : float
        Always 0: a penalty would be a part of the formulas.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.risk import AnalyticRisk
    >>> isinstance(risk, AnalyticRisk), risk.n_params, risk.n_examples
    (True, 2, 4)
    """

    n_params: int
    n_examples: int
    dtype: torch.dtype
    device: torch.device
    n_outputs = 1
    l2 = 0.0

    @abstractmethod
    def example_losses(self, theta: Tensor) -> Tensor:
        """Return ℓᵢ(θ), shape (\\*chains, N)."""

    @abstractmethod
    def example_gradients(self, theta: Tensor) -> Tensor:
        """Return gᵢ, shape (\\*chains, N, D)."""

    @abstractmethod
    def hessian(self, theta: Tensor) -> Tensor:
        """Return H, shape (\\*chains, D, D)."""

    @abstractmethod
    def gauss_newton_roots(self, theta: Tensor) -> Tensor:
        """Return R of shape (\\*chains, r, D) with G = RᵀR."""

    def gauss_newton(self, theta: Tensor) -> Tensor:
        """Return G.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, D, D)
        """
        self._check(theta)
        roots = self.gauss_newton_roots(theta)
        return roots.mT @ roots

    def gradient_covariance(self, theta: Tensor) -> Tensor:
        """Return Σ, with the divisor N.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, D, D)
        """
        self._check(theta)
        rows = self.example_gradients(theta)
        rows = rows - rows.mean(-2, keepdim=True)
        return rows.mT @ rows / self.n_examples

    def value(self, theta: Tensor) -> Tensor:
        """Return L(θ), shape (\\*chains)."""
        self._check(theta)
        return self.example_losses(theta).mean(-1)

    def losses_at(self, thetas: Tensor) -> Tensor:
        """Return L at several points: leading dimensions are free, as in value."""
        self._check(thetas, "thetas")
        return self.value(thetas)

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇L(θ), shape (\\*chains, D)."""
        self._check(theta)
        return self.example_gradients(theta).mean(-2)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return L(θ) and ∇L(θ)."""
        return self.value(theta), self.gradient(theta)

    def weighted_gradient(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return Σ vᵢgᵢ / N; ``v`` of shape (\\*chains, N)."""
        self._check(theta)
        self._check_vector(v, theta, self.n_examples)
        rows = self.example_gradients(theta)
        return (v.unsqueeze(-2) @ rows).squeeze(-2) / self.n_examples

    def value_and_noisy_gradient(
        self, theta: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + Σ vᵢgᵢ / N; ``v`` of shape (\\*chains, N)."""
        self._check_vector(v, theta, self.n_examples)
        return self.value(theta), self.weighted_gradient(theta, v + 1)

    def value_and_batch_gradient(
        self, theta: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return means of ℓᵢ and gᵢ over ``indices`` of shape (\\*chains, m)."""
        self._check(theta)
        indices = self._indices("indices", indices)
        losses = self.example_losses(theta)
        _check_axes("indices", indices, losses.ndim)
        with within("indices", self.n_examples):
            losses = losses.gather(-1, indices)
        return losses.mean(-1), self.batch_gradient(theta, indices)

    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Return the mean of gᵢ over ``indices`` of shape (\\*chains, m)."""
        self._check(theta)
        indices = self._indices("indices", indices)
        rows = self.example_gradients(theta)
        _check_axes("indices", indices, rows.ndim - 1)
        with within("indices", self.n_examples):
            return _chosen(rows, indices).mean(-2)

    def batch_gradients(self, theta: Tensor, batches: Tensor) -> Tensor:
        """Return the mean gradients; (\\*chains, b, m) to (\\*chains, b, D)."""
        self._check(theta)
        batches = self._indices("batches", batches)
        rows = self.example_gradients(theta).unsqueeze(-3)
        _check_axes("batches", batches, rows.ndim - 1)
        with within("batches", self.n_examples):
            return _chosen(rows, batches).mean(-2)

    def subset(self, indices: Tensor) -> AnalyticRisk:
        """Return the risk of the examples at ``indices``, shape (m,)."""
        indices = as_indices(indices, "indices", 1, self.device)
        with within("indices", self.n_examples):
            chosen = torch.arange(self.n_examples, device=self.device)
            return _Subset(self, chosen.gather(0, indices))

    def _check(self, theta: Tensor, name: str = "theta") -> None:
        check_point(self, theta, name)
        if theta.dtype != self.dtype:
            raise TypeError(
                f"{name} must have the risk's dtype, {self.dtype}. Got {theta.dtype}; "
                "use theta.to(risk.dtype)."
            )

    def _check_vector(self, v: Tensor, theta: Tensor, size: int) -> None:
        check_tensor("v", v, 1)
        if v.dtype != self.dtype:
            raise TypeError(
                f"v must have the risk's dtype, {self.dtype}. Got {v.dtype}."
            )
        if v.shape[-1] != size or v.ndim > max(theta.ndim, 1) + 1:
            raise ValueError(
                f"v must have shape {(*theta.shape[:-1], size)}. Got {tuple(v.shape)}."
            )

    def _indices(self, name: str, indices: Tensor) -> Tensor:
        """Return indices as integers, and not as the mask that bool would be."""
        return as_indices(indices, name, None, self.device)

    def per_example_gradients(self, theta: Tensor) -> Iterator[Tensor]:
        """Yield all gᵢ at once, shape (\\*chains, N, D)."""
        self._check(theta)
        yield self.example_gradients(theta)

    def squared_norms(self, theta: Tensor) -> Tensor:
        """Return ‖gᵢ‖² in float64, shape (\\*chains, N)."""
        self._check(theta)
        return self.example_gradients(theta).double().square().sum(-1)

    def squared_gradient_sum(self, theta: Tensor) -> Tensor:
        """Return Σᵢ gᵢ² by coordinate in float64, shape (\\*chains, D)."""
        self._check(theta)
        return self.example_gradients(theta).double().square().sum(-2)

    def gradient_variances(self, theta: Tensor) -> Tensor:
        """Return (1/N) Σᵢ (gᵢ - g₀)² by coordinate in float64, shape (\\*chains, D)."""
        return self.value_gradient_and_variances(theta)[2]

    def value_gradient_and_variances(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return L(θ), (\\*chains), g₀ and, in float64, diag(Σ), (\\*chains, D)."""
        self._check(theta)
        mean, squares = mean_and_squares(self.example_gradients(theta))
        return self.value(theta), mean.to(self.dtype), squares / self.n_examples

    def squared_hessian_product(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return (1/N) Σᵢ Hᵢ² v, shape (\\*chains, D), from ``example_gradients``."""
        self._check(theta)
        self._check_vector(v, theta, self.n_params)
        if v.shape != theta.shape:
            raise ValueError(
                f"v and theta must have one shape. Got {tuple(v.shape)} and "
                f"{tuple(theta.shape)}."
            )
        pulled = vjp(self.example_gradients, theta)
        gradients, pull = pulled[0], pulled[1]
        # Σ Hᵢuᵢ is linear in the uᵢ, and its transpose takes v to the Hᵢv.
        rows: Tensor = vjp(lambda u: pull(u)[0], gradients)[1](v)[0]
        product: Tensor = pull(rows)[0]
        return product / self.n_examples

    def covariance_trace_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ Tr(Σ) = (2/N) Σ Hᵢ(gᵢ - g₀), shape (\\*chains, D)."""
        self._check(theta)
        rows, pull, *_ = vjp(self.example_gradients, theta)
        product: Tensor = pull(rows - rows.mean(-2, keepdim=True))[0]
        return product * (2 / self.n_examples)

    def value_gradient_and_product(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return L(θ), ∇L(θ) and H ∇L(θ), half the gradient of ‖∇L‖²."""
        value, gradient = self.value_and_gradient(theta)
        return value, gradient, self.linearize(theta).hvp(gradient)

    def value_and_gauss_newton_draw(
        self, theta: Tensor, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + s ε with ε ~ N(0, G)."""
        self._check(theta)
        check_tensor("scale", scale)
        check_rng(rng, self.device)
        roots = self.gauss_newton_roots(theta)
        z = torch.randn(
            (*theta.shape[:-1], 1, roots.shape[-2]),
            generator=rng,
            dtype=self.dtype,
            device=self.device,
        )
        noise = (z @ roots).squeeze(-2)
        value, gradient = self.value_and_gradient(theta)
        return value, gradient + scale.unsqueeze(-1) * noise

    def gauss_newton_traces(
        self,
        theta: Tensor,
        rng: torch.Generator | None = None,
        *,
        n_sweeps: int | None = None,
    ) -> Tensor:
        """Return Tr(G) for every example, exactly; n_sweeps times where given."""
        self._check(theta)
        check_rng(rng, self.device, optional=True)  # the closed form needs no draw
        trace = self.gauss_newton(theta).diagonal(dim1=-2, dim2=-1).sum(-1)
        shape = *theta.shape[:-1], self.n_examples
        traces = trace.double().unsqueeze(-1).expand(shape)
        if n_sweeps is None:
            return traces
        return traces.expand(check_count("n_sweeps", n_sweeps), *shape)

    def linearize(
        self, theta: Tensor, *, n_products: int | None = None
    ) -> DenseLinearization:
        """Prepare θ for products with H and G, however many."""
        check_products(n_products)
        self._check(theta)
        return DenseLinearization(self, theta)


class _Subset(AnalyticRisk):
    """Some of the examples of another risk."""

    def __init__(self, risk: AnalyticRisk, indices: Tensor) -> None:
        self.risk = risk
        self.indices = indices
        self.n_params, self.n_examples = risk.n_params, len(indices)
        self.dtype, self.device = risk.dtype, risk.device

    def example_losses(self, theta: Tensor) -> Tensor:
        return self.risk.example_losses(theta)[..., self.indices]

    def example_gradients(self, theta: Tensor) -> Tensor:
        return self.risk.example_gradients(theta)[..., self.indices, :]

    def hessian(self, theta: Tensor) -> Tensor:
        """Return H; D passes back through the gradient."""
        self._check(theta)
        pull = vjp(lambda t: self.example_gradients(t).mean(-2), theta)[1]
        units = torch.eye(self.n_params, dtype=self.dtype, device=self.device)
        return torch.stack([pull(unit.expand_as(theta))[0] for unit in units], -2)

    def gauss_newton_roots(self, theta: Tensor) -> Tensor:
        raise ValueError(
            "The Gauss-Newton matrix of some of the examples is not known of a risk "
            f"that is given by formulas. Got {type(self.risk).__name__}; make an "
            "EmpiricalRisk of a module."
        )


def _chosen(rows: Tensor, indices: Tensor) -> Tensor:
    """Return rows of shape (\\*chains, N, D) at indices of shape (\\*chains, m)."""
    # take_along_dim would begin anew at N, where gather raises.
    chains = torch.broadcast_shapes(rows.shape[:-2], indices.shape[:-1])
    indices = indices.expand(*chains, -1).unsqueeze(-1)
    rows = rows.expand(*chains, -1, -1)
    return rows.gather(-2, indices.expand(*chains, -1, rows.shape[-1]))


def _check_axes(name: str, indices: Tensor, n_axes: int) -> None:
    if indices.ndim != n_axes:
        raise ValueError(
            f"{name} must have {n_axes} axes, with those of the chains of theta. Got "
            f"shape {tuple(indices.shape)}."
        )


class DenseLinearization:
    """H and G in full at one θ.

    Parameters
    ----------
    risk : AnalyticRisk
    theta : Tensor of shape (\\*chains, D)

    Attributes
    ----------
    hessian : Tensor of shape (\\*chains, D, D)
        H.
    """

    def __init__(self, risk: AnalyticRisk, theta: Tensor) -> None:
        self.risk = risk
        self.theta = theta.detach().clone()
        self.hessian = risk.hessian(self.theta)

    @cached_property
    def gauss_newton(self) -> Tensor:
        """G; asked for only by those who need it, since a saddle has none."""
        return self.risk.gauss_newton(self.theta)

    def hvp(self, v: Tensor) -> Tensor:
        """Return H v, shape (\\*chains, D)."""
        return (self.hessian @ v.unsqueeze(-1)).squeeze(-1)

    def ggn(self, v: Tensor) -> Tensor:
        """Return G v, shape (\\*chains, D)."""
        return (self.gauss_newton @ v.unsqueeze(-1)).squeeze(-1)

    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀv, shape (\\*chains, N)."""
        self.risk._check_vector(v, self.theta, self.risk.n_params)
        rows = self.risk.example_gradients(self.theta)
        return (rows @ v.unsqueeze(-1)).squeeze(-1)
