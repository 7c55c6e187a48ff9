"""Whether many chains go through ``vmap`` together, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from flatmin.risk.chains.kernels import (
    ChainChunk,
    chain_losses_and_pullback,
    chain_rows,
    share,
)
from flatmin.risk.chains.padding import PaddingRefused
from flatmin.risk.chains.products import ChainProducts
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.data.example_data import ArrayData
from flatmin.risk.example_sums.per_example import ROW_BUDGET, looped_rows
from flatmin.risk.example_sums.scalars import losses_and_pullback
from flatmin.risk.failures import NotTaken, explain
from flatmin.risk.products.product_ways import ProductWays
from flatmin.risk.products.reference_products import ReferenceProducts
from flatmin.risk.trials import Choice, difference, random_like, tolerance

__all__ = ["BATCHES", "GRADIENTS", "PRODUCTS", "SUMS", "ChainWays"]

T = TypeVar("T")

# What is settled apart from the others: each has kernels of its own.
GRADIENTS, BATCHES = "gradients", "minibatch gradients"
SUMS, PRODUCTS = "per-example sums", "products"

# Numbers in what one chain takes. With more, one chain is work enough for a processor,
# and the sums of a single θ have faster ways than rows.
_SMALL = ROW_BUDGET // 8


class ChainWays:
    """The kernels over chains of one risk, and which of them it uses.

    Parameters
    ----------
    ways : ProductWays
        Of products at one θ, with the network, the loss and examples to try on.
    n_numbers : int
        Input and activations of one example.
    """

    def __init__(self, ways: ProductWays, n_numbers: int) -> None:
        self.ways = ways
        self.model = ways.model
        self.loss = ways.loss
        self.few = ways.examples
        n_params = self.model.layout.n_params
        # Of each example; a gradient belongs to a chain.
        self.sizes = {
            GRADIENTS: n_numbers,
            BATCHES: n_numbers,
            SUMS: n_numbers + n_params,
            PRODUCTS: 3 * n_numbers,
        }
        self.choices = {quantity: Choice() for quantity in self.sizes}

    @property
    def paths(self) -> dict[str, str]:
        """How chains are computed, for each quantity that was asked for."""
        found = {}
        for quantity, choice in self.choices.items():
            if choice.taken == "vmap":
                found[f"{quantity} of chains"] = "vmap"
            elif choice.reasons:
                reason = choice.reasons["vmap"]
                found[f"{quantity} of chains"] = (
                    f"reference: one chain at a time, since under vmap {reason}"
                )
        return found

    def size_of_chain(self, quantity: str, n: int) -> int:
        """Return how many numbers a chain of n examples takes."""
        return n * self.sizes[quantity] + self.model.layout.n_params

    def examples_at_a_time(self, quantity: str, n_chains: int) -> int:
        """Return for how many examples all chains together stay within the budget."""
        return max(1, ROW_BUDGET // (n_chains * self.sizes[quantity]))

    def blocks(
        self, quantity: str, n: int, *tensors: Tensor
    ) -> Iterator[tuple[Tensor, ...]]:
        """Cut what belongs to C chains into blocks that bound the memory.

        Parameters
        ----------
        quantity : str
        n : int
            Examples at a time.
        *tensors : Tensor of shape (C, ...)

        Yields
        ------
        tuple of Tensor of shape (c, ...)
        """
        size = max(1, ROW_BUDGET // self.size_of_chain(quantity, n))
        yield from zip(*(tensor.split(size) for tensor in tensors), strict=True)

    def compute(
        self,
        quantity: str,
        n: int,
        thetas: Tensor,
        *,
        together: Callable[[], T],
        apart: Callable[[], T],
    ) -> T:
        """Compute something of C chains together, or one chain at a time.

        Parameters
        ----------
        quantity : str
            :data:`GRADIENTS`, :data:`BATCHES`, :data:`SUMS` or :data:`PRODUCTS`.
        n : int
            Examples at a time.
        thetas : Tensor of shape (C, D)
        together : callable
        apart : callable
            What is right in any case.

        Returns
        -------
        object
            What the callables return.

        Raises
        ------
        OutOfMemoryError
            As it comes.
        """
        choice = self.choices[quantity]
        if self.size_of_chain(quantity, n) > _SMALL:
            return apart()
        if choice.taken is None and "vmap" not in choice.reasons:
            self._settle(quantity, thetas)
        if choice.taken != "vmap":
            return apart()
        try:
            return together()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = explain(error)
        result = apart()  # a mistake of the caller's comes again
        choice.give_up("vmap", reason)
        return result

    def _settle(self, quantity: str, thetas: Tensor) -> None:
        finite = thetas[thetas.isfinite().all(-1)]
        if not len(finite):
            return
        # All chains may be at one point. The trial needs two, so the second is beside
        # the first.
        first = finite[0]
        size = first.square().mean().sqrt() or 1.0
        points = torch.stack([first, first + 0.1 * size * random_like(first, 1)])
        limit = tolerance(thetas.dtype, 2 if quantity == PRODUCTS else 1)
        trials = {
            GRADIENTS: self._gradients_off,
            BATCHES: self._minibatches_off,
            SUMS: self._rows_off,
            PRODUCTS: self._products_off,
        }
        trial = partial(trials[quantity], points)
        self.choices[quantity].settle({"vmap": trial}, limit)

    def _gradients_off(self, thetas: Tensor) -> float:
        shared = share(self.few, len(thetas))
        return self._pullbacks_off(thetas, shared, [self.few] * len(thetas))

    def _minibatches_off(self, thetas: Tensor) -> float:
        # The rules of vmap for θ alone are not those for θ and X.
        n = len(self.few.X)
        data = ArrayData(self.few.X, self.few.y, None)
        every = torch.arange(n, device=thetas.device)
        orders = [every.roll(chain) for chain in range(len(thetas))]
        own = ChainChunk(data.select(torch.cat(orders)), len(thetas), is_shared=False)
        return self._pullbacks_off(thetas, own, [data.select(o) for o in orders])

    def _pullbacks_off(
        self, thetas: Tensor, together: ChainChunk, apart: list[Chunk]
    ) -> float:
        # The loss alone can have slopes of zero.
        u = random_like(self.model.evaluate(self.few.X), 0)
        every_u = u.repeat(len(thetas), *(1 for _ in u.shape[1:]))
        with PaddingRefused():
            found = chain_losses_and_pullback(
                *(self.model, self.loss, thetas, together),
                cotangents=lambda _, own: own + every_u,
            )

        def right(theta: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
            self.model.bind(theta)
            return losses_and_pullback(
                self.model, self.loss, chunk, lambda _, own: own + u
            )

        return self._worst(found, map(right, thetas, apart))

    def _rows_off(self, thetas: Tensor) -> float:
        examples = self.ways.sums.examples()
        shared = share(self.few, len(thetas))
        args = tuple(
            argument.expand(len(thetas), *argument.shape).flatten(0, 1)
            for argument in examples.args
        )
        found = chain_rows(
            *(self.model, thetas, shared), scalar=examples.scalar, args=args
        )

        def right(theta: Tensor) -> tuple[Tensor, Tensor]:
            self.model.bind(theta)
            return looped_rows(self.model, examples)

        return self._worst(found, map(right, thetas))

    def _products_off(self, thetas: Tensor) -> float:
        if self.ways.finite_difference:
            raise NotTaken("H v is a difference of gradients")
        few, directions = self.few, random_like(thetas, 0)
        products = ChainProducts(self.model, self.loss, thetas, share(few, len(thetas)))
        with PaddingRefused():
            found = products.jvp(directions), products.hvp(directions)

        def right(theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            reference = ReferenceProducts(self.ways, theta, few)
            return reference.jvp(v), reference.hvp(v)

        return self._worst(found, map(right, thetas, directions))

    def _worst(
        self, found: tuple[Tensor, Tensor], right: Iterable[tuple[Tensor, Tensor]]
    ) -> float:
        """Return how far values and derivatives of the chains are from the right."""
        sizes = self.model.layout.sizes
        off = []
        for chain, (values, derivatives) in enumerate(right):
            off.append(difference(found[0][chain], values))
            off.append(difference(found[1][chain], derivatives, sizes))
        return max(off, key=lambda one: (one != one, one))
