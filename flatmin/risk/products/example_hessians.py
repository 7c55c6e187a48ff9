"""Sums over examples of Hᵢ² v and of Hᵢ(gᵢ - c).

All examples of a chunk at once under ``vmap``, where a trial on a few of them agrees
with one example at a time; else one at a time. The trial is needed because a second
derivative under ``vmap`` can be wrong without an error (layer norm, torch 2.13).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import grad, jvp

from flatmin._utils.quiet import ignored
from flatmin._utils.trees import leaves_of, with_leaves
from flatmin.risk.autodiff.compiler import load_compiler
from flatmin.risk.autodiff.isolation import isolated, vectorize
from flatmin.risk.autodiff.kernels import twice_differentiable
from flatmin.risk.data.chunks import Chunk, iterate_chunks
from flatmin.risk.failures import NotTaken, explain
from flatmin.risk.products.product_ways import ProductWays
from flatmin.risk.products.reference_products import ReferenceProducts
from flatmin.risk.trials import Choice, difference, tells, tolerance, worst

__all__ = ["ExampleHessians"]

_N_TRIED = 3
# The sums, by their names among a risk's paths.
_SQUARES, _SPREAD = "per-example Hessians", "per-example Hessians, ∇Tr(Σ)"


class ExampleHessians:
    """Σ Hᵢ² v and Σ Hᵢ(gᵢ - c) over the examples of a chunk, Hᵢ = ∇²ℓ̃ᵢ.

    Parameters
    ----------
    ways : ProductWays
        Gives H v of single examples, and the examples to try on.

    Attributes
    ----------
    choices : dict of str to Choice
        Of each sum "vmap" or "one by one".
    """

    def __init__(self, ways: ProductWays) -> None:
        self.ways = ways
        self.model = ways.model
        self.loss = ways.loss
        self.choices = {_SQUARES: Choice(), _SPREAD: Choice()}

    @property
    def paths(self) -> dict[str, str | None]:
        """Which kernel, and why no faster one; None before the first product."""
        return {of: _told(choice) for of, choice in self.choices.items()}

    def squared_product(self, theta: Tensor, chunk: Chunk, v: Tensor) -> Tensor:
        """Return Σ Hᵢ(Hᵢv) over a chunk.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        chunk : Chunk
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)

        Raises
        ------
        OutOfMemoryError
            As it comes: a loop over examples would only hide it.
        """
        return self._sum(_SQUARES, theta, chunk, v)

    def spread_product(self, theta: Tensor, chunk: Chunk, centre: Tensor) -> Tensor:
        """Return Σ Hᵢ(gᵢ - c) over a chunk, half the gradient of Σ ‖gᵢ - c‖².

        Parameters
        ----------
        theta : Tensor of shape (D,)
        chunk : Chunk
        centre : Tensor of shape (D,)
            c.

        Returns
        -------
        Tensor of shape (D,)

        Raises
        ------
        OutOfMemoryError
            As it comes.
        """
        return self._sum(_SPREAD, theta, chunk, centre)

    def _sum(self, of: str, theta: Tensor, chunk: Chunk, v: Tensor) -> Tensor:
        """Return Σ Hᵢ² v, or with c for v Σ Hᵢ(gᵢ - c)."""
        choice = self.choices[of]
        if (choice.taken or self._settle(of, theta, v)) == "vmap":
            try:
                return self._vectorised(of, theta, chunk, v)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                choice.give_up("vmap", explain(error))
        return self._one_by_one(of, theta, chunk, v)

    def _settle(self, of: str, theta: Tensor, v: Tensor) -> str | None:
        few = self.ways.examples.first(_N_TRIED)
        expected = [
            (point, self._one_by_one(of, point, few, v))
            for point in self.ways.trial_points(theta)
        ]
        if not any(tells(right) for _, right in expected):
            return None

        def off() -> float:
            if self.ways.finite_difference:
                raise NotTaken("hvp='finite_difference'")
            return worst(
                difference(
                    self._vectorised(of, point, few, v), right, self.model.layout.sizes
                )
                for point, right in expected
            )

        trials = {"vmap": off, "one by one": None}
        return self.choices[of].settle(trials, tolerance(self.model.precision, 2))

    def _vectorised(self, of: str, theta: Tensor, chunk: Chunk, v: Tensor) -> Tensor:
        load_compiler()
        leaves, weights = leaves_of(chunk.X), theta.new_ones(len(chunk.X))
        if chunk.weights is not None:
            weights = chunk.weights

        def value(theta: Tensor, y: Tensor, weight: Tensor, *x: Tensor) -> Tensor:
            one = with_leaves(chunk.X, [leaf.unsqueeze(0) for leaf in x])
            outputs = self.model.functional(theta, one)
            return self.loss.per_example(outputs, y.unsqueeze(0))[0] * weight

        def spread(theta: Tensor) -> Tensor:
            slope = partial(grad(value), theta)
            rows: Tensor = vectorize(slope)(chunk.y, weights, *leaves)
            return (rows - v).square().sum() / 2

        def single(*example: Tensor) -> Tensor:
            def product(v: Tensor) -> Tensor:
                slope = grad(lambda theta: value(theta, *example))
                tangent: Tensor = jvp(slope, (theta,), (v,))[1]
                return tangent

            return product(product(v))

        def total() -> Tensor:
            if of == _SPREAD:  # backward twice: less than a product an example
                pull: Tensor = grad(spread)(theta)
                return pull
            return vectorize(single)(chunk.y, weights, *leaves).sum(0)

        # PyTorch warns of a deprecated part of its own when forward mode first loads.
        with twice_differentiable(self.model.module), ignored(DeprecationWarning):
            return isolated(total).detach()

    def _one_by_one(self, of: str, theta: Tensor, chunk: Chunk, v: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for one in iterate_chunks(chunk.X, chunk.y, chunk.weights, 1):
            example = ReferenceProducts(self.ways, theta, one)
            inner = example.gradient() - v if of == _SPREAD else example.hvp(v)
            total += example.hvp(inner)
        return total


def _told(choice: Choice) -> str | None:
    if choice.taken == "one by one":
        return f"reference: under vmap {choice.reasons['vmap']}"
    return choice.taken
