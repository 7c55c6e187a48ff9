"""The words that noise laws, operators and measures use of a risk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["LinearizedRisk", "Risk"]


class LinearizedRisk(Protocol):
    """A risk prepared at one θ, or at that of each chain, for products there.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> point = risk.linearize(theta)
    >>> point.hvp(torch.ones(2))
    tensor([4., 1.])
    """

    def hvp(self, v: Tensor) -> Tensor:
        """Return H v, H = ∇²L(θ); shape (\\*chains, D)."""
        ...

    def ggn(self, v: Tensor) -> Tensor:
        """Return G v, G the generalised Gauss-Newton matrix; shape (\\*chains, D)."""
        ...

    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀv, shape (\\*chains, N)."""
        ...


class Risk(Protocol):
    """L(θ) = (1/N) Σ ℓ̃ᵢ(θ) + (λ/2)‖θ‖² and what can be asked of it.

    θ has shape ``(*chains, D)``: leading dimensions are independent chains.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> risk.value(torch.ones(2)), risk.gradient(torch.ones(2))
    (tensor(2.5000), tensor([4., 1.]))
    """

    @property
    def n_params(self) -> int:
        """D."""
        ...

    @property
    def n_examples(self) -> int:
        """N."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of θ."""
        ...

    @property
    def device(self) -> torch.device:
        """Of θ."""
        ...

    @property
    def l2(self) -> float:
        """λ of a penalty (λ/2)‖θ‖² in L, g₀, H and G, and in no gᵢ; 0 for none."""
        ...

    def value(self, theta: Tensor) -> Tensor:
        """Return L(θ), shape (\\*chains)."""
        ...

    def gradient(self, theta: Tensor) -> Tensor:
        """Return g₀ = ∇L(θ), shape (\\*chains, D)."""
        ...

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀."""
        ...

    def value_and_noisy_gradient(
        self, theta: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + Σ vᵢgᵢ / N; ``v`` of shape (\\*chains, N)."""
        ...

    def weighted_gradient(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return Σ vᵢgᵢ / N; ``v`` of shape (\\*chains, N)."""
        ...

    def value_and_batch_gradient(
        self, theta: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return plain means of ℓ̃ᵢ and gᵢ over ``indices``, shape (\\*chains, m).

        With the penalty and its gradient.
        """
        ...

    def batch_gradients(self, theta: Tensor, batches: Tensor) -> Tensor:
        """Return the mean gradient of each batch.

        ``batches`` of shape (\\*chains, b, m) to (\\*chains, b, D).
        """
        ...

    def per_example_gradients(self, theta: Tensor) -> Iterator[Tensor]:
        """Yield gᵢ in chunks of shape (\\*chains, n, D)."""
        ...

    def squared_norms(self, theta: Tensor) -> Tensor:
        """Return ‖gᵢ‖² in float64, shape (\\*chains, N)."""
        ...

    def squared_gradient_sum(self, theta: Tensor) -> Tensor:
        """Return Σᵢ gᵢ² by coordinate in float64, shape (\\*chains, D)."""
        ...

    def gradient_variances(self, theta: Tensor) -> Tensor:
        """Return (1/N) Σᵢ (gᵢ - g₀)² by coordinate in float64, shape (\\*chains, D)."""
        ...

    def value_gradient_and_variances(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return L(θ), g₀ and the ``gradient_variances`` by one sweep."""
        ...

    def squared_hessian_product(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return (1/N) Σᵢ Hᵢ² v with Hᵢ = ∇²ℓ̃ᵢ, shape (\\*chains, D)."""
        ...

    def covariance_trace_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ Tr(Σ) = (2/N) Σ Hᵢ(gᵢ - g₀), shape (\\*chains, D)."""
        ...

    def value_gradient_and_product(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return L(θ), g₀ and H g₀."""
        ...

    def value_and_gauss_newton_draw(
        self, theta: Tensor, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + s ε with ε ~ N(0, G); ``scale`` of shape (\\*chains)."""
        ...

    def gauss_newton_traces(
        self,
        theta: Tensor,
        rng: torch.Generator | None = None,
        *,
        n_sweeps: int | None = None,
    ) -> Tensor:
        """Return an unbiased estimate of Tr(Gᵢ) an example, shape (\\*chains, N).

        Without ``rng`` it is exact and takes ``n_outputs`` times as long. With
        ``n_sweeps`` it is one estimate a row, shape (n_sweeps, \\*chains, N).
        """
        ...

    def subset(self, indices: Tensor) -> Risk:
        """Return the risk of the examples at ``indices``, shape (m,)."""
        ...

    @property
    def n_outputs(self) -> int:
        """Numbers in one example's output."""
        ...

    def linearize(
        self, theta: Tensor, *, n_products: int | None = None
    ) -> LinearizedRisk:
        """Prepare θ for ``n_products`` products with H and G; None is many."""
        ...
