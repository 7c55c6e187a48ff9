"""Which of two ways to a product a risk takes: a graph, or the reference.

The *graph* is that of a kernel of :mod:`flatmin.risk.products.linear_kernels` in two
stages, of which only the second is paid for each product. The *reference* is that of
:mod:`flatmin.risk.products.reference_products`. A trial on the first chunk decides.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flatmin._utils.trees import Inputs, with_leaves
from flatmin.risk.autodiff.kernels import twice_differentiable
from flatmin.risk.autodiff.pullback import with_its_graph
from flatmin.risk.autodiff.pushforward import has_norms, load_formulas
from flatmin.risk.data.chunks import Chunk, pad_chunk
from flatmin.risk.failures import NotTaken, explain
from flatmin.risk.network.model import FlatModel
from flatmin.risk.probe import share_of_activations
from flatmin.risk.products.compiled import compiled
from flatmin.risk.products.linear_kernels import LINEAR_KERNELS
from flatmin.risk.products.product_ways import ProductWays
from flatmin.risk.products.reference_products import ReferenceProducts
from flatmin.risk.products.two_stage import TwoStage, two_stage_graph
from flatmin.risk.trials import attempt, difference, random_like, tolerance, worst

__all__ = ["ProductGraphs", "pad_direction", "repays", "unpad"]

# Numbers that N examples' activations and parameters come to, from which a graph pays.
# Making one takes some 0.5 s for a small network whatever the data, and saves half of
# each product's time.
_WORTH_A_GRAPH = 1 << 24
_OF_THETA = ("hvp", "ggn", "vjp")  # products of shape (D,), by a backward pass
_CONTEXTS = (nullcontext, with_its_graph)  # the first takes less time and memory


class _Trial(NamedTuple):
    """What the product of a graph is compared with."""

    chunk: Chunk
    probe: Tensor  # the direction
    expected: Tensor  # the reference's product


class ProductGraphs:
    """The graphs of one risk's products: made, and tried, when first asked for.

    Parameters
    ----------
    ways : ProductWays
        What the graphs are tried against.
    chunk_size : int
        Examples in every chunk that a graph will see.
    work : int
        Numbers that one pass over all data computes, about.
    compiles : bool, default=False
        Whether ``torch.compile`` is tried on what is used for each product.

    Attributes
    ----------
    paths : dict of str to str
        For each quantity that was asked for, "graph", or "reference" and why; of a
        graph, too, whether it is compiled, where that was tried.
    graphs : dict of str to TwoStage
        Of those that serve.
    """

    def __init__(
        self, ways: ProductWays, chunk_size: int, work: int, *, compiles: bool = False
    ) -> None:
        self.ways = ways
        self.compiles = compiles
        self.model = ways.model
        self.loss = ways.loss
        self.chunk_size = chunk_size
        self.work = work
        self.paths: dict[str, str] = {}
        self.graphs: dict[str, TwoStage] = {}
        self._prepared: tuple[Tensor, ...] | None = None  # by the last trial
        self._tried_at: dict[str, int] = {}  # number of updates of the module then

    def of(self, model: FlatModel) -> ProductGraphs:
        """Return those of another model with the same outputs, such as a block."""
        share = share_of_activations(model, self.ways.examples.X)
        work = int(self.work * share)
        ways = self.ways.of(model)
        return ProductGraphs(ways, self.chunk_size, work, compiles=self.compiles)

    def describe(self) -> dict[str, str]:
        """Return :attr:`paths`, with how the reference products come about."""
        return {
            quantity: path
            + ("" if quantity in self.graphs else self.ways.describe(quantity))
            for quantity, path in self.paths.items()
        }

    def describe_few(self, quantity: str) -> str:
        """Return the path of a quantity where a graph is not repaid."""
        return "reference: few products do not repay a graph" + self.ways.describe(
            quantity
        )

    def find(self, quantity: str, theta: Tensor, chunk: Chunk) -> TwoStage | None:
        """Return the graph, or None where the reference is to be taken.

        Parameters
        ----------
        quantity : str
            A key of :data:`flatmin.risk.products.linear_kernels.LINEAR_KERNELS`.
        theta : Tensor of shape (D,)
            Where a trial is made.
        chunk : Chunk
            Of the data, for a trial.

        Returns
        -------
        TwoStage or None
        """
        self._prepared = None
        n_updates = self.model.n_updates
        if quantity in self.graphs and self._tried_at[quantity] != n_updates:
            # Numbers of buffers that Python has read are constants of the graph.
            if not self._still_holds(quantity, theta, chunk):
                del self.graphs[quantity], self.paths[quantity]
                self._prepared = None
            self._tried_at[quantity] = n_updates
        if quantity not in self.paths:
            path = self._try(quantity, theta, chunk)
            if path is None:
                return None
            self.paths[quantity] = path
            self._tried_at[quantity] = n_updates
        return self.graphs.get(quantity)

    def prepare(
        self, graph: TwoStage, theta: Tensor, chunk: Chunk
    ) -> tuple[Tensor, ...]:
        """Return what a graph keeps for a chunk; call it behind :meth:`find`.

        Parameters
        ----------
        graph : TwoStage
        theta : Tensor of shape (D,)
        chunk : Chunk

        Returns
        -------
        tuple of Tensor
        """
        kept, self._prepared = self._prepared, None
        if kept is None or chunk.weights is not None:  # the trial leaves these out
            kept = graph.prepare(theta, *pad_chunk(chunk, self.chunk_size))
        return kept

    def _try(self, quantity: str, theta: Tensor, chunk: Chunk) -> str | None:
        """Return the path, or None where numbers that are not finite tell nothing."""
        if quantity == "hvp" and self.ways.finite_difference:
            return "reference: hvp='finite_difference'"
        if self.work < _WORTH_A_GRAPH:
            return "reference: too little work for a graph to pay"
        trial = self._trial(quantity, theta, chunk)
        if not bool(trial.expected.isfinite().all()):
            return None
        compare = partial(self._difference, quantity, theta, trial)
        limit = tolerance(self.model.precision, 2)
        for context in _CONTEXTS if quantity in _OF_THETA else (nullcontext,):
            with context():
                reason = attempt("the product by a graph", compare, limit)
            if reason is None:
                return "graph" + self._compiled(quantity, theta, trial)
            self.graphs.pop(quantity, None)
            self._prepared = None
        return f"reference: {reason}"

    def _compiled(self, quantity: str, theta: Tensor, trial: _Trial) -> str:
        """Take compiled code where it is right; return what the path tells of it."""
        if not self.compiles:
            return ""
        graph = self.graphs[quantity]
        fast = replace(graph, use=compiled(graph.use))
        plain = trial._replace(expected=self._found(graph, quantity, theta, trial))
        compare = partial(self._distance, fast, quantity, theta, plain)
        limit = tolerance(self.model.precision, 2)
        reason = attempt("the compiled product", compare, limit)
        if reason is not None:
            return f", not compiled: {reason}"
        self.graphs[quantity] = fast
        return ", compiled"

    def _trial(self, quantity: str, theta: Tensor, chunk: Chunk) -> _Trial:
        # A weight of zero would hide an example, and with it a difference.
        chunk = replace(chunk, weights=None)
        if quantity == "hvp":  # before the vectors of this trial are there
            self.ways.settle_hessian(theta)
        probe = self._probe(quantity, chunk)
        # Without a name: it holds a graph, which is gone before the next one is made.
        expected = getattr(ReferenceProducts(self.ways, theta, chunk), quantity)(probe)
        return _Trial(chunk, probe, expected)

    def _difference(self, quantity: str, theta: Tensor, trial: _Trial) -> float:
        """Make a graph, and return how far its product is from what is expected."""
        padded = pad_chunk(trial.chunk, self.chunk_size)
        direction = pad_direction(quantity, trial.probe, self.chunk_size)
        if quantity == "hvp" and has_norms(self.model.module):
            load_formulas()  # now, not when half is recorded
        with twice_differentiable(self.model.module):
            graph = two_stage_graph(
                partial(self._product, quantity, trial.chunk.X),
                theta,
                direction,
                *padded,
            )
        if any(self.model.holds(constant) for constant in graph.constants):
            raise NotTaken(
                "the module reads its parameters past θ, as a checkpoint does; a "
                "product keeps what checkpoints let go"
            )
        trials = [(theta, trial)]
        for other in self.ways.trial_points(theta)[1:]:
            trials.append((other, self._trial(quantity, other, trial.chunk)))
        # At θ last: what is prepared there is kept.
        off = worst(
            self._distance(graph, quantity, *at_point) for at_point in trials[::-1]
        )
        self.graphs[quantity] = graph  # not before: the trial may run out of memory
        return off

    def _distance(
        self, graph: TwoStage, quantity: str, theta: Tensor, trial: _Trial
    ) -> float:
        """Return how far a graph's product is from what is expected."""
        found = self._found(graph, quantity, theta, trial)
        sizes = self.model.layout.sizes if quantity in _OF_THETA else None
        return difference(found, trial.expected, sizes)

    def _found(
        self, graph: TwoStage, quantity: str, theta: Tensor, trial: _Trial
    ) -> Tensor:
        kept = graph.prepare(theta, *pad_chunk(trial.chunk, self.chunk_size))
        direction = pad_direction(quantity, trial.probe, self.chunk_size)
        found = unpad(quantity, graph.use(*kept, direction), len(trial.chunk.X))
        self._prepared = kept
        return found

    def _still_holds(self, quantity: str, theta: Tensor, chunk: Chunk) -> bool:
        """Try the graph again, on a module that was updated."""
        trial = self._trial(quantity, theta, chunk)
        compare = partial(self._distance, self.graphs[quantity], quantity, theta, trial)
        name = "the product by a graph after an update"
        return attempt(name, compare, tolerance(self.model.precision, 2)) is None

    def _product(
        self, quantity: str, X: Inputs, theta: Tensor, v: Tensor, *data: Tensor
    ) -> Tensor:
        """Return the kernel's product; ``data`` as from :func:`pad_chunk`."""
        *leaves, y, weights = data
        kernel, X = LINEAR_KERNELS[quantity], with_leaves(X, leaves)
        return kernel(self.model, self.loss, theta, v, X, y, weights)

    def _probe(self, quantity: str, chunk: Chunk) -> Tensor:
        """Return a fixed random direction."""
        like = self.model.theta()
        if quantity == "vjp":
            like = self.model.evaluate(chunk.X)
        return random_like(like, 0)

    def give_up(self, quantity: str, error: Exception) -> None:
        """Take the reference from now on.

        Parameters
        ----------
        quantity : str
        error : Exception
            What the graph raised on other data than those of the trial.
        """
        del self.graphs[quantity]
        self.paths[quantity] = f"reference: in the graph {explain(error)}"

    # A copy of the risk has a model of its own, and a graph does not pickle.
    def __getstate__(self) -> dict[str, object]:
        state = {**self.__dict__, "paths": {}, "graphs": {}, "_tried_at": {}}
        return {**state, "_prepared": None}


def repays(n_products: int, n_chunks: int) -> bool:
    """Say whether making a graph costs less than it saves, from counts alone.

    Parameters
    ----------
    n_products : int
        At one θ.
    n_chunks : int

    Returns
    -------
    bool

    Examples
    --------
    >>> [repays(n, 1) for n in (1, 12, 13)], [repays(n, 4) for n in (1, 2)]
    ([False, False, True], [False, True])
    """
    # In gradients over all data, from a LeNet and a decoder on one thread: a graph is
    # made, and tried, on one chunk for 15; then it is prepared for 1.5 and used for
    # 1.3. A kept double backward takes 3, and 2.4 a product. It is kept for one chunk.
    graph = 15 / n_chunks + 1.5 + 1.3 * n_products
    kept = n_chunks == 1
    reference = 3 + 2.4 * n_products if kept else (3 + 2.4) * n_products
    return graph <= reference


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
