"""Sums over examples of squared Hessians times a vector.

All examples of a chunk at once under ``vmap``, where a trial on a few of them agrees
with one example at a time; else one at a time. The trial is needed because a second
derivative under ``vmap`` can be wrong without an error (layer norm, torch 2.13).
"""

from __future__ import annotations

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
from flatmin.risk.trials import Choice, difference, tells, tolerance

__all__ = ["ExampleHessians"]

_N_TRIED = 3


class ExampleHessians:
    """Σ Hᵢ² v over the examples of a chunk, Hᵢ = ∇²ℓ̃ᵢ.

    Parameters
    ----------
    ways : ProductWays
        Gives H v of single examples, and the examples to try on.

    Attributes
    ----------
    choice : Choice
        "vmap" or "one by one".
    """

    def __init__(self, ways: ProductWays) -> None:
        self.ways = ways
        self.model = ways.model
        self.loss = ways.loss
        self.choice = Choice()

    @property
    def path(self) -> str | None:
        """Which kernel, and why no faster one; None before the first product."""
        if self.choice.taken == "one by one":
            return f"reference: under vmap {self.choice.reasons['vmap']}"
        return self.choice.taken

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
        if (self.choice.taken or self._settle(theta, v)) == "vmap":
            try:
                return self._vectorised(theta, chunk, v)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.choice.give_up("vmap", explain(error))
        return self._one_by_one(theta, chunk, v)

    def _settle(self, theta: Tensor, v: Tensor) -> str | None:
        few = self.ways.examples.first(_N_TRIED)
        expected = self._one_by_one(theta, few, v)
        if not tells(expected):
            return None

        def off() -> float:
            if self.ways.finite_difference:
                raise NotTaken("hvp='finite_difference'")
            found = self._vectorised(theta, few, v)
            return difference(found, expected, self.model.layout.sizes)

        trials = {"vmap": off, "one by one": None}
        return self.choice.settle(trials, tolerance(self.model.precision, 2))

    def _vectorised(self, theta: Tensor, chunk: Chunk, v: Tensor) -> Tensor:
        load_compiler()
        leaves, weights = leaves_of(chunk.X), theta.new_ones(len(chunk.X))
        if chunk.weights is not None:
            weights = chunk.weights

        def single(y: Tensor, weight: Tensor, *x: Tensor) -> Tensor:
            def value(theta: Tensor) -> Tensor:
                one = with_leaves(chunk.X, [leaf.unsqueeze(0) for leaf in x])
                outputs = self.model.functional(theta, one)
                return self.loss.per_example(outputs, y.unsqueeze(0))[0] * weight

            def product(v: Tensor) -> Tensor:
                tangent: Tensor = jvp(grad(value), (theta,), (v,))[1]
                return tangent

            return product(product(v))

        # PyTorch warns of a deprecated part of its own when forward mode first loads.
        with twice_differentiable(self.model.module), ignored(DeprecationWarning):
            mapped = vectorize(single)
            rows = isolated(lambda: mapped(chunk.y, weights, *leaves))
        return rows.sum(0).detach()

    def _one_by_one(self, theta: Tensor, chunk: Chunk, v: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for one in iterate_chunks(chunk.X, chunk.y, chunk.weights, 1):
            example = ReferenceProducts(self.ways, theta, one)
            total += example.hvp(example.hvp(v))
        return total
