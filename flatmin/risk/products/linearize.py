"""A risk prepared at one θ, for many products with H, G and J there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flatmin._utils.locks import Lock
from flatmin.risk.arguments import as_direction
from flatmin.risk.autodiff.precision import in_full_float32
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.failures import NotTaken
from flatmin.risk.network.batch_statistics import needs_examples
from flatmin.risk.network.model import FlatModel
from flatmin.risk.products.graphs import (
    ProductGraphs,
    pad_direction,
    repays,
    unpad,
)
from flatmin.risk.products.reference_products import ReferenceProducts
from flatmin.risk.products.two_stage import TwoStage
from flatmin.risk.ranks.collectives import Ranks
from flatmin.risk.ranks.shard import Shard
from flatmin.risk.ranks.words import gathered, summed

__all__ = ["SYMBOLS", "Linearization"]

# Of the products, in messages and in an audit.
SYMBOLS = {
    "hvp": "H v",
    "ggn": "G v",
    "jvp": "J v",
    "vjp": "Jᵀu",
    "directional_derivatives": "gᵢᵀv",
}
# Bytes of intermediate values that are kept for one θ. Chunks beyond it are prepared
# anew for each product.
_KEPT_BYTES = 1 << 31


class Linearization:
    """The products with H, G and J at one θ.

    Parameters
    ----------
    graphs : ProductGraphs
    chunks : callable
        Returns an iterator over the data.
    theta : Tensor of shape (D,)
        Copied.
    shard : Shard
        Which of the N examples the chunks hold.
    ranks : Ranks
    output_shape : tuple of int
        Of one example's output.
    l2 : float
        λ of the penalty: H and G hold λI.
    n_products : int or None
        How many will be asked for, at most; None is many.
    """

    def __init__(
        self,
        graphs: ProductGraphs,
        chunks: Callable[[], Iterator[Chunk]],
        theta: Tensor,
        shard: Shard,
        ranks: Ranks,
        output_shape: tuple[int, ...],
        *,
        l2: float,
        n_products: int | None = None,
    ) -> None:
        self.theta = theta.detach().clone()
        self.device = theta.device
        self.n_examples = shard.n_examples
        self._shard = shard
        self._ranks = ranks
        self._n_own = self.n_examples if shard.rows is None else len(shard.rows)
        self._output_shape = output_shape
        self._l2 = l2
        self._graphs = graphs
        n_chunks = math.ceil(self._n_own / graphs.chunk_size)
        self._takes_graphs = n_products is None or repays(n_products, n_chunks)
        self._few: set[str] = set()  # asked for without trying a graph
        self._n_updates = graphs.model.n_updates
        self._chunks = chunks
        self._kept: dict[tuple[str, int], tuple[Tensor, ...]] = {}
        self._kept_bytes = 0
        self._reference: ReferenceProducts | None = None

    @property
    def paths(self) -> dict[str, str]:
        """How each quantity that was asked for is computed: "graph", or why not."""
        with self._lock:
            few = {name: self._graphs.describe_few(name) for name in self._few}
            return self._graphs.describe() | few

    @property
    def _model(self) -> FlatModel:
        return self._graphs.model

    @property
    def _lock(self) -> Lock:
        return self._model.lock

    @summed
    @in_full_float32
    def hvp(self, v: Tensor) -> Tensor:
        """Return H v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        return self._penalised(self._sum("hvp", v) / self.n_examples, v)

    @summed
    @in_full_float32
    def ggn(self, v: Tensor) -> Tensor:
        """Return G v = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v + λv.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        return self._penalised(self.fisher(v), v)

    @summed
    @in_full_float32
    def fisher(self, v: Tensor) -> Tensor:
        """Return F v = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v, without the penalty: no likelihood has it.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        return self._sum("ggn", v) / self.n_examples

    @gathered()
    @in_full_float32
    def jvp(self, v: Tensor) -> Tensor:
        """Return J v, the derivative of all outputs along v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (N, \\*output_shape)
        """
        return torch.cat(list(self._parts("jvp", v)))

    @summed
    @in_full_float32
    def vjp(self, u: Tensor) -> Tensor:
        """Return Jᵀ u = Σ Jᵢᵀ uᵢ.

        Parameters
        ----------
        u : Tensor of shape (N, \\*output_shape)

        Returns
        -------
        Tensor of shape (D,)
        """
        return self._sum("vjp", u)

    @needs_examples
    @gathered()
    @in_full_float32
    def directional_derivatives(self, v: Tensor) -> Tensor:
        """Return gᵢᵀ v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (N,)
        """
        return torch.cat(list(self._parts("directional_derivatives", v)))

    def _penalised(self, product: Tensor, v: Tensor) -> Tensor:
        l2 = self._ranks.once(self._l2)
        if not l2:
            return product
        return product.add(v.to(product), alpha=l2)

    def _sum(self, quantity: str, direction: Tensor) -> Tensor:
        parts = self._parts(quantity, direction)
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    def _checked(self, quantity: str, direction: Tensor) -> Tensor:
        """Return a direction, or raise: it is never why a way is given up."""
        name, shape = "v", tuple(self.theta.shape)
        if quantity == "vjp":
            name, shape = "u", (self.n_examples, *self._output_shape)
        direction = as_direction(direction, name, shape, self.theta)
        if not bool(direction.isfinite().all()):
            raise FloatingPointError(
                f"{name} must be finite. Got NaN or infinity in a direction that "
                f"{SYMBOLS[quantity]} is asked for."
            )
        return direction

    def _parts(self, quantity: str, direction: Tensor) -> Iterator[Tensor]:
        self._model.check_current(self._n_updates)
        direction = self._checked(quantity, direction)
        size, n = self._graphs.chunk_size, self._n_own
        starts = range(0, n, size)

        def use(graph: TwoStage, kept: tuple[Tensor, ...], rows: slice) -> Tensor:
            part = direction
            if quantity == "vjp":
                part = direction[self._shard.place(rows)]
            product = graph.use(*kept, pad_direction(quantity, part, size))
            if not bool(product.isfinite().all()):
                raise NotTaken("a product that is not finite")
            return unpad(quantity, product.detach(), rows.stop - rows.start)

        ready = self._graphs.graphs.get(quantity) if self._takes_graphs else None
        if not self._takes_graphs:
            self._few.add(quantity)
        everything = [(quantity, index) in self._kept for index in range(len(starts))]
        n_done = 0
        if ready is not None and all(everything):  # no chunk has to be read again
            try:
                for index, start in enumerate(starts):
                    rows = slice(start, min(start + size, n))
                    yield use(ready, self._kept[quantity, index], rows)
                    n_done += 1
                return
            except NotTaken as error:
                self._graphs.give_up(quantity, error)
        for index, chunk in enumerate(self._chunks()):
            if index < n_done:
                continue
            start = index * size
            graph = None
            if self._takes_graphs:
                graph = self._graphs.find(quantity, self.theta, chunk)
            if graph is not None:
                try:
                    kept = self._kept.get((quantity, index))
                    if kept is None:
                        kept = self._prepared(graph, quantity, index, chunk)
                    yield use(graph, kept, slice(start, start + len(chunk.X)))
                    continue
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, NotTaken) as error:  # shapes depend on the data
                    self._graphs.give_up(quantity, error)
            part = direction[chunk.rows] if quantity == "vjp" else direction
            product = getattr(self._reference_chunk(chunk), quantity)(part)
            if not bool(product.isfinite().all()):
                raise FloatingPointError(self._where(quantity, product, chunk))
            yield product

    def _where(self, quantity: str, product: Tensor, chunk: Chunk) -> str:
        """Say where a product is not finite."""
        wild = ~product.isfinite()
        if quantity in ("jvp", "directional_derivatives"):
            rows = wild.reshape(len(wild), -1).any(1).nonzero().flatten()
            first = int(
                torch.arange(self.n_examples, device=self.device)[chunk.rows][rows[0]]
            )
            where = f"for {len(rows)} examples, of which {first} is the first"
        else:
            layout = self._graphs.model.layout
            parts = zip(layout.names, wild.split(list(layout.sizes)), strict=True)
            names = [name for name, part in parts if part.any()]
            where = f"in the parameters {', '.join(names)}"
        return (
            f"{SYMBOLS[quantity]} must be finite. Got NaN or infinity {where}. Either "
            "θ, the vector v (u) or the outputs are not finite, or the network has no "
            "such derivative at this θ, as a square root at 0."
        )

    def _prepared(
        self, graph: TwoStage, quantity: str, index: int, chunk: Chunk
    ) -> tuple[Tensor, ...]:
        kept = self._graphs.prepare(graph, self.theta, chunk)
        size = _bytes_held(kept)
        if self._kept_bytes + size <= _KEPT_BYTES:
            self._kept[quantity, index] = kept
            self._kept_bytes += size
        return kept

    def _reference_chunk(self, chunk: Chunk) -> ReferenceProducts:
        if self._reference is not None:
            return self._reference
        reference = ReferenceProducts(self._graphs.ways, self.theta, chunk)
        if len(chunk.X) == self._n_own:
            # The graphs of several chunks would not be bounded by the size of one.
            self._reference = reference
        return reference


def _bytes_held(tensors: tuple[Tensor, ...]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())
