"""Which of two implementations of a product a risk uses.

The *traced* one runs a kernel of :mod:`flatmin.risk.linear_kernels` as a graph in two
stages, of which only the second is paid for each product. The *plain* one is that of
:mod:`flatmin.risk.reference_products`. A trial on the first chunk decides.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from flatmin.risk.chunks import Chunk, pad_chunk
from flatmin.risk.kernels import twice_differentiable
from flatmin.risk.linear_kernels import LINEAR_KERNELS
from flatmin.risk.reference_products import ProductWays, ReferenceProducts
from flatmin.risk.trials import attempt, difference, explain, random_like, tolerance
from flatmin.risk.two_stage import TwoStage, trace_in_two
from flatmin.risk.unsupported import NotTaken

__all__ = ["Traces", "pad_direction", "unpad"]

# Numbers that N examples' activations and parameters come to, from which a trace pays.
# Tracing takes some 0.5 s for a small network whatever the data, and saves half of
# each product's time.
_WORTH_TRACING = 1 << 24
_OF_THETA = ("hvp", "ggn", "vjp")  # products of shape (D,)


class Traces:
    """The traced kernels of one risk: made, and tried, when first asked for.

    Parameters
    ----------
    ways : ProductWays
        What the traces are tried against.
    chunk_size : int
        Examples in every chunk that a trace will see.
    work : int
        Numbers that one pass over all data computes, about.

    Attributes
    ----------
    paths : dict of str to str
        For each quantity that was asked for, "traced", or why it is "plain".
    graphs : dict of str to TwoStage
        Of the traced ones.
    """

    def __init__(self, ways: ProductWays, chunk_size: int, work: int) -> None:
        self.ways = ways
        self.model = ways.model
        self.loss = ways.loss
        self.chunk_size = chunk_size
        self.work = work
        self.paths: dict[str, str] = {}
        self.graphs: dict[str, TwoStage] = {}

    def told(self) -> dict[str, str]:
        """Return :attr:`paths`, with how the plain ones come about."""
        return {
            quantity: path if path == "traced" else path + self.ways.told(quantity)
            for quantity, path in self.paths.items()
        }

    def find(self, quantity: str, theta: Tensor, chunk: Chunk) -> TwoStage | None:
        """Return the traced kernel, or None where the plain path is to be taken.

        Parameters
        ----------
        quantity : str
            A key of :data:`flatmin.risk.linear_kernels.LINEAR_KERNELS`.
        theta : Tensor of shape (D,)
            Where a trial is made.
        chunk : Chunk
            Of the data, for a trial.

        Returns
        -------
        TwoStage or None
        """
        if quantity not in self.paths:
            path = self._try(quantity, theta, chunk)
            if path != "traced":
                self.graphs.pop(quantity, None)
            self.paths[quantity] = path
        return self.graphs.get(quantity)

    def _try(self, quantity: str, theta: Tensor, chunk: Chunk) -> str:
        if quantity == "hvp" and self.ways.finite_difference:
            return "plain: hvp='finite_difference'"
        if self.work < _WORTH_TRACING:
            return "plain: too little work for a trace to pay"
        # A weight of zero would hide an example, and with it a difference.
        chunk = replace(chunk, weights=None)
        reference = ReferenceProducts(self.ways, theta, chunk)
        probe = self._probe(quantity, chunk)
        expected = getattr(reference, quantity)(probe)
        reason = attempt(
            "the traced product",
            partial(self._difference, quantity, theta, chunk, probe, expected),
            tolerance(theta.dtype, 2),
        )
        return "traced" if reason is None else f"plain: {reason}"

    def _difference(
        self,
        quantity: str,
        theta: Tensor,
        chunk: Chunk,
        probe: Tensor,
        expected: Tensor,
    ) -> float:
        """Trace a product, and return how far it is from what is expected."""
        padded = pad_chunk(chunk, self.chunk_size)
        direction = pad_direction(quantity, probe, self.chunk_size)
        with twice_differentiable(self.model.module):
            graph = trace_in_two(
                partial(LINEAR_KERNELS[quantity], self.model, self.loss),
                theta,
                direction,
                *padded,
            )
        if any(self.model.holds(constant) for constant in graph.constants):
            raise NotTaken(
                "the module reads its parameters past θ, as a checkpoint does"
            )
        kept = graph.prepare(theta, *padded)
        found = unpad(quantity, graph.use(*kept, direction), len(chunk.X))
        self.graphs[quantity] = graph
        sizes = self.model.layout.sizes if quantity in _OF_THETA else None
        return difference(found, expected, sizes)

    def _probe(self, quantity: str, chunk: Chunk) -> Tensor:
        """Return a fixed random direction."""
        like = self.model.values()
        if quantity == "vjp":
            like = self.model.evaluate(chunk.X)
        return random_like(like, 0)

    def give_up(self, quantity: str, error: Exception) -> None:
        """Take the plain path from now on.

        Parameters
        ----------
        quantity : str
        error : Exception
            What the traced kernel raised on other data than those of the trial.
        """
        del self.graphs[quantity]
        self.paths[quantity] = f"plain: in the trace {explain(error)}"

    # A copy of the risk has a model of its own, and a graph does not pickle.
    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "paths": {}, "graphs": {}}


def pad_direction(quantity: str, direction: Tensor, size: int) -> Tensor:
    """Fill up what has one row an example, as the chunk is filled up.

    Parameters
    ----------
    quantity : str
    direction : Tensor
        For "vjp" of shape (n, \\*output_shape), else (D,).
    size : int
        Examples in a chunk.

    Returns
    -------
    Tensor
    """
    missing = size - len(direction)
    if quantity != "vjp" or missing == 0:
        return direction
    return torch.cat([direction, direction.new_zeros(missing, *direction.shape[1:])])


def unpad(quantity: str, product: Tensor, size: int) -> Tensor:
    """Leave out the rows of what the chunk was filled up with.

    Parameters
    ----------
    quantity : str
    product : Tensor
    size : int
        Examples that the chunk really has.

    Returns
    -------
    Tensor
    """
    if quantity in ("jvp", "directional_derivatives"):
        return product[:size]
    return product
