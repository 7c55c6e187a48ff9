"""Risks with closed-form H and Σ, whose θ may be many chains at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.func import vjp

from flatmin._utils.arrays import check_floating, check_tensor
from flatmin._utils.random import check_rng
from flatmin.risk.arguments import as_indices, check_point, within
from flatmin.risk.example_sums.moments import mean_and_squares
from flatmin.risk.label_noise import LabelDraw, check_draw

__all__ = ["AnalyticRisk", "LinearRegressionRisk", "QuadraticRisk"]


class AnalyticRisk(ABC):
    """L(θ) = (1/N) Σ ℓᵢ(θ) given by formulas; θ has shape ``(*batch, D)``.

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
    """

    n_params: int
    n_examples: int
    dtype: torch.dtype
    device: torch.device
    n_outputs = 1

    @abstractmethod
    def example_losses(self, theta: Tensor) -> Tensor:
        """Return ℓᵢ(θ), shape (\\*batch, N)."""

    @abstractmethod
    def example_gradients(self, theta: Tensor) -> Tensor:
        """Return gᵢ, shape (\\*batch, N, D)."""

    @abstractmethod
    def hessian(self, theta: Tensor) -> Tensor:
        """Return H, shape (\\*batch, D, D)."""

    @abstractmethod
    def gauss_newton_roots(self, theta: Tensor) -> Tensor:
        """Return R of shape (\\*batch, r, D) with G = RᵀR."""

    def gauss_newton(self, theta: Tensor) -> Tensor:
        """Return G.

        Parameters
        ----------
        theta : Tensor of shape (\\*batch, D)

        Returns
        -------
        Tensor of shape (\\*batch, D, D)
        """
        self._check(theta)
        roots = self.gauss_newton_roots(theta)
        return roots.mT @ roots

    def gradient_covariance(self, theta: Tensor) -> Tensor:
        """Return Σ, with the divisor N.

        Parameters
        ----------
        theta : Tensor of shape (\\*batch, D)

        Returns
        -------
        Tensor of shape (\\*batch, D, D)
        """
        self._check(theta)
        rows = self.example_gradients(theta)
        rows = rows - rows.mean(-2, keepdim=True)
        return rows.mT @ rows / self.n_examples

    def value(self, theta: Tensor) -> Tensor:
        """Return L(θ), shape (\\*batch)."""
        self._check(theta)
        return self.example_losses(theta).mean(-1)

    def values(self, thetas: Tensor) -> Tensor:
        """Return L at several points: leading dimensions are free, as in value."""
        self._check(thetas, "thetas")
        return self.value(thetas)

    def gradient(self, theta: Tensor) -> Tensor:
        """Return ∇L(θ), shape (\\*batch, D)."""
        self._check(theta)
        return self.example_gradients(theta).mean(-2)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return L(θ) and ∇L(θ)."""
        return self.value(theta), self.gradient(theta)

    def weighted_gradient(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return Σ vᵢgᵢ / N; ``v`` of shape (\\*batch, N)."""
        self._check(theta)
        self._check_vector(v, theta, self.n_examples)
        rows = self.example_gradients(theta)
        return (v.unsqueeze(-2) @ rows).squeeze(-2) / self.n_examples

    def value_and_weighted_gradient(
        self, theta: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the unweighted L(θ) and Σ vᵢgᵢ / N."""
        return self.value(theta), self.weighted_gradient(theta, v)

    def value_and_batch_gradient(
        self, theta: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return means of ℓᵢ and gᵢ over ``indices`` of shape (\\*batch, m)."""
        self._check(theta)
        indices = self._indices("indices", indices)
        losses = self.example_losses(theta)
        _check_axes("indices", indices, losses.ndim)
        with within("indices", self.n_examples):
            losses = losses.gather(-1, indices)
        return losses.mean(-1), self.batch_gradient(theta, indices)

    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Return the mean of gᵢ over ``indices`` of shape (\\*batch, m)."""
        self._check(theta)
        indices = self._indices("indices", indices)
        rows = self.example_gradients(theta)
        _check_axes("indices", indices, rows.ndim - 1)
        with within("indices", self.n_examples):
            return _chosen(rows, indices).mean(-2)

    def batch_gradients(self, theta: Tensor, batches: Tensor) -> Tensor:
        """Return the mean gradients; (\\*batch, b, m) to (\\*batch, b, D)."""
        self._check(theta)
        batches = self._indices("batches", batches)
        rows = self.example_gradients(theta).unsqueeze(-3)
        _check_axes("batches", batches, rows.ndim - 1)
        with within("batches", self.n_examples):
            return _chosen(rows, batches).mean(-2)

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
        """Yield all gᵢ at once, shape (\\*batch, N, D)."""
        self._check(theta)
        yield self.example_gradients(theta)

    def squared_norms(self, theta: Tensor) -> Tensor:
        """Return ‖gᵢ‖² in float64, shape (\\*batch, N)."""
        self._check(theta)
        return self.example_gradients(theta).double().square().sum(-1)

    def squared_gradient_sum(self, theta: Tensor) -> Tensor:
        """Return Σᵢ gᵢ² by coordinate in float64, shape (\\*batch, D)."""
        self._check(theta)
        return self.example_gradients(theta).double().square().sum(-2)

    def gradient_variances(self, theta: Tensor) -> Tensor:
        """Return (1/N) Σᵢ (gᵢ - g₀)² by coordinate in float64, shape (\\*batch, D)."""
        return self.value_gradient_and_variances(theta)[2]

    def value_gradient_and_variances(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return L(θ), shape (\\*batch), g₀ and, in float64, diag(Σ), (\\*batch, D)."""
        self._check(theta)
        mean, squares = mean_and_squares(self.example_gradients(theta))
        return self.value(theta), mean.to(self.dtype), squares / self.n_examples

    def squared_hessian_product(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return (1/N) Σᵢ Hᵢ² v, shape (\\*batch, D), from ``example_gradients``."""
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

    def directional_derivatives(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return gᵢᵀv, shape (\\*batch, N)."""
        self._check(theta)
        self._check_vector(v, theta, self.n_params)
        return (self.example_gradients(theta) @ v.unsqueeze(-1)).squeeze(-1)

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
        self, theta: Tensor, rng: torch.Generator | None = None
    ) -> Tensor:
        """Return Tr(G) for every example, exactly, shape (\\*batch, N)."""
        self._check(theta)
        check_rng(rng, self.device, optional=True)  # the closed form needs no draw
        trace = self.gauss_newton(theta).diagonal(dim1=-2, dim2=-1).sum(-1)
        return trace.double().unsqueeze(-1).expand(*theta.shape[:-1], self.n_examples)

    def linearize(self, theta: Tensor) -> DenseLinearization:
        """Prepare θ for products with H and G."""
        self._check(theta)
        return DenseLinearization(self, theta)


def _chosen(rows: Tensor, indices: Tensor) -> Tensor:
    """Return rows of shape (\\*batch, N, D) at indices of shape (\\*batch, m)."""
    # take_along_dim would begin anew at N, where gather raises.
    batch = torch.broadcast_shapes(rows.shape[:-2], indices.shape[:-1])
    indices = indices.expand(*batch, -1).unsqueeze(-1)
    rows = rows.expand(*batch, -1, -1)
    return rows.gather(-2, indices.expand(*batch, -1, rows.shape[-1]))


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
    theta : Tensor of shape (\\*batch, D)

    Attributes
    ----------
    hessian : Tensor of shape (\\*batch, D, D)
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
        """Return H v, shape (\\*batch, D)."""
        return (self.hessian @ v.unsqueeze(-1)).squeeze(-1)

    def ggn(self, v: Tensor) -> Tensor:
        """Return G v, shape (\\*batch, D)."""
        return (self.gauss_newton @ v.unsqueeze(-1)).squeeze(-1)

    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀv, shape (\\*batch, N)."""
        return self.risk.directional_derivatives(self.theta, v)


class QuadraticRisk(AnalyticRisk):
    """ℓᵢ(θ) = ½ (θ - θ*)ᵀ A (θ - θ*) + bᵢᵀ(θ - θ*) with Σ bᵢ = 0.

    H = A everywhere and Σ = (1/N) Σ bᵢbᵢᵀ everywhere. G = A, so the Gauss-Newton
    words need a positive semi-definite A.

    Parameters
    ----------
    matrix : Tensor of shape (D, D)
        A, symmetric.
    slopes : Tensor of shape (N, D)
        bᵢ; centred here.
    minimum : Tensor of shape (D,), default=None
        θ*; None is 0.

    Examples
    --------
    >>> A = torch.diag(torch.tensor([4.0, 1.0]))
    >>> risk = QuadraticRisk(A, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    >>> risk.gradient(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    tensor([[4., 2.],
            [0., 1.]])
    >>> risk.gradient_covariance(torch.zeros(2))
    tensor([[1., 0.],
            [0., 0.]])
    """

    def __init__(
        self, matrix: Tensor, slopes: Tensor, minimum: Tensor | None = None
    ) -> None:
        check_floating("matrix", matrix, 2)
        check_floating("slopes", slopes, 2)
        D = slopes.shape[-1]
        if slopes.ndim != 2 or matrix.shape != (D, D) or not len(slopes):
            raise ValueError(
                "matrix and slopes must have shapes (D, D) and (N, D). Got "
                f"{tuple(matrix.shape)} and {tuple(slopes.shape)}."
            )
        if minimum is not None:
            check_floating("minimum", minimum, 1)
            if minimum.shape != (D,):
                raise ValueError(
                    f"minimum must have shape ({D},). Got {tuple(minimum.shape)}."
                )
        self.matrix = (matrix + matrix.mT) / 2
        self.slopes = slopes - slopes.mean(0)
        self.minimum = torch.zeros_like(slopes[0]) if minimum is None else minimum
        self.n_examples, self.n_params = slopes.shape
        self.dtype, self.device = slopes.dtype, slopes.device

    def example_losses(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_losses`."""
        self._check(theta)
        delta = theta - self.minimum
        quadratic = ((delta @ self.matrix) * delta).sum(-1, keepdim=True) / 2
        return quadratic + delta @ self.slopes.mT

    def example_gradients(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_gradients`."""
        self._check(theta)
        mean = (theta - self.minimum) @ self.matrix
        return mean.unsqueeze(-2) + self.slopes

    def hessian(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.hessian`."""
        self._check(theta)
        return self.matrix.expand(*theta.shape[:-1], -1, -1)

    def gauss_newton_roots(self, theta: Tensor) -> Tensor:
        """Return √Λ Uᵀ of A = UΛUᵀ.

        Parameters
        ----------
        theta : Tensor of shape (\\*batch, D)

        Returns
        -------
        Tensor of shape (\\*batch, D, D)

        Raises
        ------
        ValueError
            If A is indefinite.
        """
        self._check(theta)
        return self._roots.expand(*theta.shape[:-1], -1, -1)

    @cached_property
    def _roots(self) -> Tensor:
        values, vectors = torch.linalg.eigh(self.matrix)
        if bool(values[0] < -1e-6 * values.abs().max()):
            raise ValueError(
                "The Gauss-Newton matrix needs a positive semi-definite A. "
                f"Got the eigenvalue {float(values[0]):.3g}."
            )
        roots: Tensor = values.clamp(min=0).sqrt().unsqueeze(-1) * vectors.mT
        return roots


class LinearRegressionRisk(AnalyticRisk):
    """ℓᵢ(θ) = (xᵢᵀθ - yᵢ)².

    H = G = (2/N) XᵀX; gᵢ = 2 (xᵢᵀθ - yᵢ) xᵢ.

    Parameters
    ----------
    X : Tensor of shape (N, D)
    y : Tensor of shape (N,)

    Examples
    --------
    >>> risk = LinearRegressionRisk(torch.tensor([[1.0], [3.0]]), torch.zeros(2))
    >>> risk.value(torch.tensor([2.0])), risk.hessian(torch.tensor([2.0]))
    (tensor(20.), tensor([[10.]]))
    """

    def __init__(self, X: Tensor, y: Tensor) -> None:
        check_floating("X", X, 2)
        check_floating("y", y, 1)
        if X.ndim != 2 or y.shape != X.shape[:1] or not len(X):
            raise ValueError(
                "X and y must have shapes (N, D) and (N,). Got "
                f"{tuple(X.shape)} and {tuple(y.shape)}."
            )
        self.X, self.y = X, y
        self.n_examples, self.n_params = X.shape
        self.dtype, self.device = X.dtype, X.device

    def example_losses(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_losses`."""
        self._check(theta)
        return (theta @ self.X.mT - self.y).square()

    def example_gradients(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.example_gradients`."""
        self._check(theta)
        return 2 * (theta @ self.X.mT - self.y).unsqueeze(-1) * self.X

    def hessian(self, theta: Tensor) -> Tensor:
        """See :meth:`AnalyticRisk.hessian`."""
        self._check(theta)
        return self.gauss_newton(theta)

    def gauss_newton_roots(self, theta: Tensor) -> Tensor:
        """Return √(2/N) X.

        Parameters
        ----------
        theta : Tensor of shape (\\*batch, D)

        Returns
        -------
        Tensor of shape (\\*batch, N, D)
        """
        self._check(theta)
        roots = self.X * math.sqrt(2 / self.n_examples)
        return roots.expand(*theta.shape[:-1], -1, -1)

    def check_label_noise(self) -> None:
        """Pass: y' = y + σ z is another y."""

    def value_and_label_draw(
        self, theta: Tensor, draw: LabelDraw, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ - (2σc/N) Xᵀz.

        Parameters
        ----------
        theta : Tensor of shape (\\*batch, D)
        draw : LabelDraw
        scale : Tensor of shape (\\*batch)
            c.
        rng : torch.Generator

        Returns
        -------
        value : Tensor of shape (\\*batch)
        gradient : Tensor of shape (\\*batch, D)
        """
        self._check(theta)
        check_draw(draw)
        check_tensor("scale", scale)
        check_rng(rng, self.device)
        shape = (*theta.shape[:-1], self.n_examples)
        z = torch.randn(shape, generator=rng, dtype=self.dtype, device=self.device)
        noise = z @ self.X * (-2 * draw.sigma / self.n_examples)
        value, gradient = self.value_and_gradient(theta)
        return value, gradient + scale.unsqueeze(-1) * noise

    def label_covariance_product(
        self, point: DenseLinearization, v: Tensor, draw: LabelDraw
    ) -> Tensor:
        """Return (2σ/N)² XᵀX v, shape (\\*batch, D)."""
        check_draw(draw)
        self._check_vector(v, v, self.n_params)
        factor = (2 * draw.sigma / self.n_examples) ** 2
        return v @ self.X.mT @ self.X * factor

    def label_traces(self, theta: Tensor, draw: LabelDraw) -> Tensor:
        """Return 4σ² ‖xᵢ‖² of each example, in float64, shape (\\*batch, N)."""
        self._check(theta)
        check_draw(draw)
        traces = 4 * draw.sigma**2 * self.X.double().square().sum(-1)
        return traces.expand(*theta.shape[:-1], -1)
