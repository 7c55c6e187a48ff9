"""What an empirical risk tells of H and G, besides their products."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin._utils.arrays import check_scalar_tensor
from flatmin._utils.columns import as_column
from flatmin._utils.numbers import check_count
from flatmin._utils.random import check_rng
from flatmin.risk.arguments import as_direction, check_no_sweeps
from flatmin.risk.autodiff.precision import in_full_float32
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.chains.dispatch import over_chains
from flatmin.risk.network.batch_statistics import needs_examples
from flatmin.risk.products.gauss_newton import (
    gauss_newton_draw,
    gauss_newton_example_traces,
)
from flatmin.risk.products.reference_products import ReferenceProducts
from flatmin.risk.quantities.per_example import PerExampleRisk
from flatmin.risk.ranks.words import announced, gathered, summed

__all__ = ["SecondOrderRisk"]

# Sweeps that share a run forward: their cotangents are held.
_UNITS_AT_ONCE = 16


class SecondOrderRisk(PerExampleRisk):
    """Squared Hessians, draws from N(0, G), and traces of G."""

    def vjp(self, theta: Tensor, u: Tensor) -> Tensor:
        """Return Jᵀ u = Σ Jᵢᵀ uᵢ.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        u : Tensor of shape (\\*chains, N, \\*output_shape)

        Returns
        -------
        Tensor of shape (\\*chains, D)
        """
        return self.linearize(theta, n_products=1).vjp(u)

    @needs_examples
    @summed
    @over_chains
    @in_full_float32
    def squared_hessian_product(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return (1/N) Σᵢ Hᵢ² v with Hᵢ = ∇²ℓ̃ᵢ, by two products an example.

        The Hᵢ hold no penalty: their mean is H - λI.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        v : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, D)
        """
        v = as_direction(v, "v", (self.n_params,), self._uniform)
        self._model.bind(theta)
        theta = self._model.theta()
        total = torch.zeros_like(theta)
        for chunk in self._chunks(self._row_chunk_size):
            total += self._hessians.squared_product(theta, chunk, v)
        return total / self.n_examples

    @needs_examples
    @over_chains
    @in_full_float32
    def covariance_trace_gradient(self, theta: Tensor) -> Tensor:
        """Return ∇ Tr(Σ) = (2/N) Σ Hᵢ(gᵢ - g₀), by two passes back through the gᵢ.

        The gᵢ, and g₀ here, hold no penalty.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, D)
        """
        # Not g₀ less λθ: where λθ is much larger no digits would be left.
        mean = self.weighted_gradient(theta, torch.ones_like(self._uniform))
        self._model.bind(theta)
        theta = self._model.theta()
        return self._spread_products(theta, mean) * (2 / self.n_examples)

    @summed
    def _spread_products(self, theta: Tensor, mean: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for chunk in self._chunks(self._row_chunk_size):
            total += self._hessians.spread_product(theta, chunk, mean)
        return total

    @over_chains
    @in_full_float32
    def value_gradient_and_product(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return L(θ), g₀ and H g₀, half the gradient of ‖g₀‖².

        Without waiting for the device to look for NaN, as ``hvp`` does.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        value : Tensor of shape (\\*chains)
        gradient : Tensor of shape (\\*chains, D)
        product : Tensor of shape (\\*chains, D)
        """
        value, gradient = self.value_and_gradient(theta)
        return value, gradient, self._unchecked_hvp(theta, gradient)

    def _unchecked_hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return H v; of several ranks at work, this one's part."""
        self._model.bind(theta)
        theta = self._model.theta()
        product = self._reference_products(theta, v) / self.n_examples
        return product.add(v, alpha=self._ranks.once(self.l2))

    @summed
    def _reference_products(self, theta: Tensor, v: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for chunk in self._chunks():
            total += ReferenceProducts(self._ways, theta, chunk).hvp(v)
        return total

    @summed
    @over_chains
    @alone
    def value_and_gauss_newton_draw(
        self, theta: Tensor, scale: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + s ε with ε ~ N(0, G), by one backward pass.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        scale : Tensor of shape (\\*chains)
            s.
        rng : torch.Generator
            On the risk's device.

        Returns
        -------
        value : Tensor of shape (\\*chains)
        gradient : Tensor of shape (\\*chains, D)
        """
        check_scalar_tensor("scale", scale)
        check_rng(rng, self.device)
        self._model.bind(theta)  # or raise, before anything is drawn
        z = torch.randn(
            (self.n_examples, *self.output_shape),
            generator=rng,
            dtype=self.dtype,
            device=self.device,
        )
        value, gradient = self._gauss_newton_pull(theta, z, scale)
        if self.l2:  # G holds λI
            beside = torch.randn(
                (self.n_params,), generator=rng, dtype=self.dtype, device=self.device
            )
            gradient += scale * self._ranks.once(self.l2) ** 0.5 * beside
        return self._penalised(value, gradient)

    def _gauss_newton_pull(
        self, theta: Tensor, z: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + s ε without a penalty, ε made of ``z``."""
        self._model.bind(theta)
        return self._add(
            gauss_newton_draw(
                self._model, self._loss, chunk, z[chunk.rows], scale, self.n_examples
            )
            for chunk in self._chunks()
        )

    @needs_examples
    @announced
    def gauss_newton_traces(
        self,
        theta: Tensor,
        rng: torch.Generator | None = None,
        *,
        n_sweeps: int | None = None,
    ) -> Tensor:
        """Return Tr(Gᵢ) of each example, or an unbiased estimate.

        G is the mean of the Gᵢ, and λI of a penalty, which is not in these traces.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        rng : torch.Generator, default=None
            On the risk's device: draws random signs for an estimate by one sweep.
            None takes ``n_outputs`` sweeps, one for each output, and is exact.
        n_sweeps : int, default=None
            Estimates by as many sweeps, one a row. They share one run forward, except
            where the gradients of the examples are made in full.

        Returns
        -------
        Tensor of shape (\\*chains, N), or (n_sweeps, \\*chains, N)
            In float64.

        Raises
        ------
        ValueError
            If there are ``n_sweeps`` without ``rng``.
        """
        check_rng(rng, self.device, optional=True)
        # What is no tensor is named where it is bound.
        chains = theta.shape[:-1] if isinstance(theta, Tensor) else ()
        shape = (*chains, self.n_examples, *self.output_shape)
        if rng is not None:
            k = 1 if n_sweeps is None else check_count("n_sweeps", n_sweeps)
            signs = [
                torch.randint(0, 2, shape, generator=rng, device=self.device)
                for _ in range(k)
            ]
            z = [(2 * bits - 1).to(self.dtype) for bits in signs]
            traces = self._gauss_newton_sweeps(theta, torch.stack(z))
            return traces[0] if n_sweeps is None else traces
        check_no_sweeps(n_sweeps)
        numbers = shape[: len(chains) + 1]
        total = torch.zeros(numbers, dtype=torch.float64, device=self.device)
        units = torch.eye(self.n_outputs, dtype=self.dtype, device=self.device)
        for some in units.split(_UNITS_AT_ONCE):
            z = some.view(-1, *(1 for _ in numbers), *self.output_shape)
            total += self._gauss_newton_sweeps(theta, z.expand(-1, *shape)).sum(0)
        return total

    @gathered(1)
    @over_chains
    @in_full_float32
    def _gauss_newton_sweeps(self, theta: Tensor, z: Tensor) -> Tensor:
        """Return ‖Jᵢᵀ Sᵢ zᵢ‖² of k sweeps, shape (k, \\*chains, N)."""
        self._model.bind(theta)
        return torch.cat(
            [
                gauss_newton_example_traces(
                    self._model, self._loss, self._sums, chunk, z[:, chunk.rows]
                )
                for chunk in self._chunks()
            ],
            dim=1,
        )

    def check_gauss_newton(self) -> None:
        """Raise ValueError if the loss has no Hessian in the outputs, which G needs."""
        self._loss.check_output_hessian()

    def check_likelihood(self) -> None:
        """Raise TypeError if the loss is no likelihood, which F needs."""
        self._loss.check_likelihood()

    @announced
    @alone
    def model_slopes(self, theta: Tensor, rng: torch.Generator) -> Tensor:
        """Return slopes sᵢ at targets that the model draws, with E[sᵢsᵢᵀ] = Hᵢ.

        Hᵢ is the Hessian of ℓ̃ᵢ in the output. With one output and no weights
        sᵢ = ∂ℓ̃ᵢ/∂fᵢ. A weight wᵢ scales Hᵢ, so that it scales sᵢ by √wᵢ; the mean over
        T positions scales it by 1/√T, not 1/T.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        rng : torch.Generator
            On the risk's device.

        Returns
        -------
        Tensor of shape (\\*chains, N, \\*output_shape)

        Raises
        ------
        TypeError
            If the loss is no likelihood.
        FloatingPointError
            If the outputs are not finite.
        """
        check_rng(rng, self.device)
        outputs = self.outputs(theta)
        if not bool(outputs.isfinite().all()):
            raise FloatingPointError("The outputs at θ are not finite. Look at θ.")
        flat = outputs.reshape(-1, *self.output_shape)
        y = self._targets(len(flat) // self.n_examples)
        slopes = self._loss.model_slope(flat, y, rng).view(outputs.shape)
        if self._data.weights is None:
            return slopes
        weights = self._every_weight()
        return slopes * as_column(weights.sqrt(), flat)
