"""A risk prepared at one θ, for many products with H, G and J there.

Two implementations stand side by side. The *traced* one runs the kernels of
:mod:`flatmin.risk.linear_kernels` as a graph in two stages, of which only the second
is paid for each product. The *plain* one is double backward. A trial on the first
chunk decides which of them a risk uses for a quantity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from flatmin.risk.chunks import Chunk, pad_chunk
from flatmin.risk.double_backward import DoubleBackward
from flatmin.risk.kernels import twice_differentiable
from flatmin.risk.linear_kernels import LINEAR_KERNELS
from flatmin.risk.losses import ExampleLoss
from flatmin.risk.model import FlatModel
from flatmin.risk.two_stage import TwoStage, trace_in_two

__all__ = ["Linearization", "Traces"]

# Numbers that N examples' activations and parameters come to, from which a trace pays.
# Tracing takes some 0.5 s for a small network whatever the data, and saves half of
# each product's time.
_WORTH_TRACING = 1 << 24

# Bytes of intermediate values that are kept for one θ. Chunks beyond it are prepared
# anew for each product.
_KEPT_BYTES = 1 << 31


class Traces:
    """The traced kernels of one risk: made, and tried, when first asked for.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss
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

    def __init__(
        self, model: FlatModel, loss: ExampleLoss, chunk_size: int, work: int
    ) -> None:
        self.model = model
        self.loss = loss
        self.chunk_size = chunk_size
        self.work = work
        self.paths: dict[str, str] = {}
        self.graphs: dict[str, TwoStage] = {}

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
            self.paths[quantity] = self._try(quantity, theta, chunk)
        return self.graphs.get(quantity)

    def _try(self, quantity: str, theta: Tensor, chunk: Chunk) -> str:
        if self.work < _WORTH_TRACING:
            return "plain: too little work for a trace to pay"
        # A weight of zero would hide an example, and with it a difference.
        chunk = replace(chunk, weights=None)
        padded = pad_chunk(chunk, self.chunk_size)
        plain = getattr(DoubleBackward(self.model, self.loss, theta, chunk), quantity)
        probes = self._probes(quantity, chunk)
        try:
            with twice_differentiable(self.model.module):
                graph = trace_in_two(
                    LINEAR_KERNELS[quantity](self.model, self.loss),
                    theta,
                    _pad_direction(quantity, probes[0], self.chunk_size),
                    *padded,
                )
        except torch.OutOfMemoryError:
            raise
        # Whatever a module does that cannot be traced, such as a branch on its data,
        # the plain path may be able to.
        except Exception as error:
            return f"plain: {type(error).__name__} while tracing: {error}"
        if any(self.model.holds(constant) for constant in graph.constants):
            return "plain: the module reads its parameters past θ, as a checkpoint does"
        kept = graph.prepare(theta, *padded)

        def traced(direction: Tensor) -> Tensor:
            direction = _pad_direction(quantity, direction, self.chunk_size)
            return _unpad(quantity, graph.use(*kept, direction), len(chunk.X))

        first = plain(probes[0])
        difference = _relative(traced(probes[0]) - first, first)
        tolerance = 1e-3 if theta.dtype == torch.float32 else 1e-8
        if not difference <= tolerance:
            right = (
                quantity in ("hvp", "ggn")
                and _asymmetry(plain, probes) > tolerance
                and _asymmetry(traced, probes) <= tolerance
            )
            if not right:
                return f"plain: the traced product differs by {difference:.1e} from it"
        self.graphs[quantity] = graph
        return "traced"

    def _probes(self, quantity: str, chunk: Chunk) -> list[Tensor]:
        """Return two fixed random directions."""
        theta = self.model.values()
        like = self.model(chunk.X).detach() if quantity == "vjp" else theta
        rng = torch.Generator(device=theta.device).manual_seed(0)
        return [
            torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)
            for _ in range(2)
        ]

    def give_up(self, quantity: str, error: Exception) -> None:
        """Take the plain path from now on.

        Parameters
        ----------
        quantity : str
        error : Exception
            What the traced kernel raised on other data than those of the trial.
        """
        del self.graphs[quantity]
        self.paths[quantity] = f"plain: {type(error).__name__} in the trace: {error}"

    # A copy of the risk has a model of its own, and a graph does not pickle.
    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "paths": {}, "graphs": {}}


class Linearization:
    """The products with H, G and J at one θ.

    Parameters
    ----------
    traces : Traces
    chunks : callable
        Returns an iterator over the data.
    theta : Tensor of shape (D,)
        Copied.
    n_examples : int
        N.
    """

    def __init__(
        self,
        traces: Traces,
        chunks: Callable[[], Iterator[Chunk]],
        theta: Tensor,
        n_examples: int,
    ) -> None:
        self.theta = theta.detach().clone()
        self.n_examples = n_examples
        self._traces = traces
        self._chunks = chunks
        self._kept: dict[tuple[str, int], tuple[Tensor, ...]] = {}
        self._kept_bytes = 0
        self._plain: DoubleBackward | None = None

    @property
    def paths(self) -> dict[str, str]:
        """How each quantity that was asked for is computed: "traced", or why not."""
        return dict(self._traces.paths)

    def hvp(self, v: Tensor) -> Tensor:
        """Return H v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        return self._sum("hvp", v) / self.n_examples

    def ggn(self, v: Tensor) -> Tensor:
        """Return G v = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ v.

        Parameters
        ----------
        v : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape (D,)
        """
        return self._sum("ggn", v) / self.n_examples

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

    def _sum(self, quantity: str, direction: Tensor) -> Tensor:
        parts = self._parts(quantity, direction)
        total = next(parts)
        for part in parts:
            total = total + part
        return total

    def _parts(self, quantity: str, direction: Tensor) -> Iterator[Tensor]:
        direction = direction.to(self.theta.dtype)
        size, n = self._traces.chunk_size, self.n_examples
        starts = range(0, n, size)

        def use(graph: TwoStage, kept: tuple[Tensor, ...], rows: slice) -> Tensor:
            part = direction[rows] if quantity == "vjp" else direction
            product = graph.use(*kept, _pad_direction(quantity, part, size))
            return _unpad(quantity, product, rows.stop - rows.start)

        ready = self._traces.graphs.get(quantity)
        everything = [(quantity, index) in self._kept for index in range(len(starts))]
        if ready is not None and all(everything):  # no chunk has to be read again
            for index, start in enumerate(starts):
                rows = slice(start, min(start + size, n))
                yield use(ready, self._kept[quantity, index], rows)
            return
        for index, chunk in enumerate(self._chunks()):
            graph = self._traces.find(quantity, self.theta, chunk)
            if graph is not None:
                try:
                    kept = self._kept.get((quantity, index))
                    if kept is None:
                        kept = self._prepared(graph, quantity, index, chunk)
                    yield use(graph, kept, chunk.rows)
                    continue
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:  # shapes that depend on the data
                    self._traces.give_up(quantity, error)
            part = direction[chunk.rows] if quantity == "vjp" else direction
            yield getattr(self._plain_chunk(chunk), quantity)(part)

    def _prepared(
        self, graph: TwoStage, quantity: str, index: int, chunk: Chunk
    ) -> tuple[Tensor, ...]:
        kept = graph.prepare(self.theta, *pad_chunk(chunk, self._traces.chunk_size))
        size = _bytes_held(kept)
        if self._kept_bytes + size <= _KEPT_BYTES:
            self._kept[quantity, index] = kept
            self._kept_bytes += size
        return kept

    def _plain_chunk(self, chunk: Chunk) -> DoubleBackward:
        if self._plain is not None:
            return self._plain
        traces = self._traces
        plain = DoubleBackward(traces.model, traces.loss, self.theta, chunk)
        if len(chunk.X) == self.n_examples:
            self._plain = plain  # several graphs would not be bounded by a chunk
        return plain


def _pad_direction(quantity: str, direction: Tensor, size: int) -> Tensor:
    missing = size - len(direction)
    if quantity != "vjp" or missing == 0:
        return direction
    return torch.cat([direction, direction.new_zeros(missing, *direction.shape[1:])])


def _unpad(quantity: str, product: Tensor, size: int) -> Tensor:
    if quantity in ("jvp", "directional_derivatives"):
        return product[:size]
    return product


def _bytes_held(tensors: tuple[Tensor, ...]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def _relative(difference: Tensor, reference: Tensor) -> float:
    norm = reference.norm()
    return float(difference.norm() / norm) if norm else float(difference.norm())


def _asymmetry(product: Callable[[Tensor], Tensor], probes: list[Tensor]) -> float:
    """Return |aᵀHb - bᵀHa| relative to the products."""
    a, b = probes
    Ha, Hb = product(a), product(b)
    scale = float(b.norm() * Ha.norm() + a.norm() * Hb.norm())
    return abs(float(b @ Ha - a @ Hb)) / scale if scale else 0.0
