"""What all quantities of an empirical risk share: the examples, and sums over them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from flatmin.risk.arguments import as_indices, check_products, within
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.chains.dispatch import over_chains
from flatmin.risk.chains.ways import ChainWays
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.data.example_data import ArrayData, ExampleData
from flatmin.risk.example_sums.scalars import ExampleScalars, losses_and_gradient
from flatmin.risk.example_sums.sums import ExampleSums
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.batch_statistics import Statistics, needs_examples
from flatmin.risk.products.example_hessians import ExampleHessians
from flatmin.risk.products.graphs import ProductGraphs
from flatmin.risk.products.linearize import Linearization
from flatmin.risk.products.product_ways import ProductWays
from flatmin.risk.quantities.network_risk import NetworkRisk
from flatmin.risk.quantities.penalty import add_penalty
from flatmin.risk.ranks.collectives import ALONE, Ranks
from flatmin.risk.ranks.shard import Shard
from flatmin.risk.ranks.words import announced, gathered

__all__ = ["ExamplesRisk"]


class ExamplesRisk(NetworkRisk):
    """A network, a loss and N examples, and the loop over chunks of them."""

    output_shape: tuple[int, ...]
    chunk_size: int
    l2: float
    _loss: ExampleLoss
    _data: ExampleData  # of this rank
    _ranks: Ranks
    _shard: Shard
    _uniform: Tensor  # (N,) of 1/N
    _sums: ExampleSums
    _chain_ways: ChainWays
    _compile: bool
    _over_chains: Any  # OverChains, which knows all words
    _hessians: ExampleHessians
    _ways: ProductWays
    _graphs: ProductGraphs
    _all_graphs: dict[tuple[int, int], ProductGraphs]
    _block: tuple[tuple[tuple[str, ...], int], Tensor, ProductGraphs] | None
    _statistics: tuple[int, Tensor, Statistics] | None  # of the last θ
    _row_chunk_size: int
    _work_per_example: int

    @property
    def n_examples(self) -> int:
        """N."""
        return self._shard.n_examples

    @property
    def distributed(self) -> bool:
        """Whether the processes of a group share the examples, and must ask alike."""
        return self._ranks.serial > 0

    @property
    def n_outputs(self) -> int:
        """Numbers in one example's output."""
        return torch.Size(self.output_shape).numel()

    @property
    def paths(self) -> dict[str, str]:
        """Which kernels ran: for each quantity the fast one's name, or why not.

        "precision" is there where the module computes in less than θ's, as a norm in
        float32: its numbers have the digits of that. It tells by how much this changed
        H v on a few examples at the θ of the trial; at another θ the audit tells.
        """
        with self._lock:
            tried = {
                "per-example sums": self._sums.path,
                **self._hessians.paths,
            }
            found = {name: path for name, path in tried.items() if path is not None}
            lowest = self._model.lowest_dtype
            if lowest != self.dtype:
                inside = str(lowest).removeprefix("torch.")
                casts = self._ways.describe_casts()
                found["precision"] = f"the module computes in {inside} inside{casts}"
            return {**self._graphs.describe(), **found, **self._chain_ways.paths}

    @needs_examples
    @announced
    @alone
    def subset(self, indices: Tensor) -> Self:
        """Return the risk of some of the examples, L_B(θ) = (1/B) Σ ℓ̃ᵢ over them.

        It costs reading B examples. What this risk has tried, and the graphs that it
        has made, are used again, also by the next subset of that size. Weights stay
        N wᵢ / Σw, so a random subset's L_B and ∇L_B have the means L and ∇L. The two
        share a network: their calls wait for each other.

        Parameters
        ----------
        indices : Tensor of shape (B,)
            Which examples; one may come twice.

        Returns
        -------
        EmpiricalRisk
            Holds its examples in memory.

        Raises
        ------
        ValueError, TypeError
            If there are no indices, or they are no integers along one axis.
        """
        indices = as_indices(indices, "indices", 1, self.device)
        with self._ranks.together("subset") as asked:
            asked.append(indices)
            with within("indices", self.n_examples):
                shard, local = self._shard.subset(indices)
                chosen = self._data.select(local)
        part = copy.copy(self)
        # Chunks of one size: a graph fills up the last one.
        n_chunks = math.ceil(len(local) / self.chunk_size)
        part._hold(
            ArrayData(chosen.X, chosen.y, chosen.weights),
            math.ceil(len(local) / n_chunks),
            shard,
        )
        return part

    @announced
    @over_chains
    @alone
    def linearize(
        self,
        theta: Tensor,
        *,
        select: str | list[str] | None = None,
        n_products: int | None = None,
    ) -> Linearization:
        """Prepare θ for products with H, G and J.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
            Copied: the prepared point stays where it is.
        select : str or list of str, default=None
            Names of parameters or modules, as of :meth:`ParameterLayout.indices`: then
            v has their d numbers, H and G are the block of these, J their columns.
            Nothing is computed that no product of the block needs, so that one of a
            layer near the outputs costs a fraction. For one θ of shape (D,). None takes
            all.
        n_products : int, default=None
            How many will be asked for, if that is known; None is many. A few do not
            repay the graph that many are computed by.

        Returns
        -------
        Linearization or ChainLinearization
            With ``hvp``, ``ggn``, ``jvp``, ``vjp`` and ``directional_derivatives``;
            its ``paths`` tell how each was computed.

        Raises
        ------
        ValueError, TypeError
            If θ or a name does not fit.

        Examples
        --------
        >>> from flatmin import EmpiricalRisk
        >>> X, y = [[3.0]], [[0.0]]
        >>> risk = EmpiricalRisk(torch.nn.Linear(1, 1), "squared_error", X, y)
        >>> risk.linearize(risk.params(), select="weight").hvp(torch.ones(1))
        tensor([18.])
        """
        check_products(n_products)
        self._model.bind(theta)
        graphs = self._graphs if select is None else self._graphs_of_block(select)
        return Linearization(
            graphs,
            self._chunks,
            graphs.model.theta(),
            self._shard,
            self._ranks,
            self.output_shape,
            l2=self.l2,
            n_products=n_products,
        )

    def _graphs_of_block(self, select: str | list[str]) -> ProductGraphs:
        """Return the products of a block at the bound θ, whose rest they hold."""
        names = self.layout.chosen(select)
        if names == self.layout.names:
            return self._graphs
        # The last one is kept: a table asks for products at one θ several times.
        key, theta = (names, self._model.n_updates), self._model.theta()
        kept = self._block
        if kept is None or kept[0] != key or not torch.equal(kept[1], theta):
            kept = key, theta, self._graphs.of(self._model.block(names))
            self._block = kept
        return kept[2]

    def _of_few(self) -> Self:
        """Return the risk of the examples that things are tried on, of this rank."""
        part, few = copy.copy(self), self._few
        part._ranks, n = ALONE, len(few.X)
        part._hold(ArrayData(few.X, few.y, None), min(self.chunk_size, n), Shard(n))
        return part

    def _hold(self, examples: ExampleData, chunk_size: int, shard: Shard) -> None:
        n, n_all = len(examples), shard.n_examples
        self._data = examples
        self._shard = shard
        self._block = self._statistics = None
        self.chunk_size = chunk_size
        ones = torch.ones(n_all, dtype=self.dtype, device=self.device)
        self._uniform = ones.fill_(1 / n_all)
        if (n, chunk_size) not in self._all_graphs:
            self._all_graphs[n, chunk_size] = ProductGraphs(
                self._ways,
                chunk_size,
                n * self._work_per_example,
                compiles=self._compile,
            )
        self._graphs = self._all_graphs[n, chunk_size]

    def _chunks(self, chunk_size: int | None = None) -> Iterator[Chunk]:
        size = self.chunk_size if chunk_size is None else chunk_size
        chunks = self._data.iterate(size)
        return chunks if self._shard.rows is None else map(self._placed, chunks)

    def _placed(self, chunk: Chunk) -> Chunk:
        """Return a chunk of this rank with its places among the N examples."""
        return replace(chunk, rows=self._shard.place(cast(slice, chunk.rows)))

    def _targets(self, n_chains: int = 1) -> Tensor:
        """Return y of all examples, for each chain in a row."""
        y = self._every_y()
        return y.expand(n_chains, *y.shape).flatten(0, 1)

    @gathered()
    def _every_y(self) -> Tensor:
        return torch.cat([chunk.y for chunk in self._chunks()])

    @gathered()
    def _every_weight(self) -> Tensor:
        """Return N wᵢ / Σw of all examples, where they have weights."""
        return cast(Tensor, self._data.weights)

    def _scalars(self, chunk: Chunk) -> ExampleScalars:
        """Return ℓ̃ᵢ of a chunk, to be differentiated."""

        def weighted(outputs: Tensor, y: Tensor, weights: Tensor) -> Tensor:
            return self._loss.per_example(outputs, y) * weights

        scalar = self._loss.per_example if chunk.weights is None else weighted
        return ExampleScalars(chunk.X, chunk.targets_and_weights, scalar)

    def _pull_back(self, theta: Tensor, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return L(θ) and Σ cᵢ ∇ℓ̃ᵢ; ``cotangents`` of shape (N,)."""
        self._model.bind(theta)
        return self._add(
            losses_and_gradient(self._model, self._loss, chunk, cotangents[chunk.rows])
            for chunk in self._chunks()
        )

    def _penalised(self, value: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Add the penalty of the bound θ to a value, and its gradient to a gradient."""
        l2 = self._ranks.once(self.l2)
        if not l2:  # θ is not even copied
            return value, gradient
        return add_penalty(value, gradient, self._model.theta(), l2)

    def _add(self, parts: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        losses, total = next(parts)
        sums = [losses.sum(dtype=torch.float64)]
        for losses, gradient in parts:
            sums.append(losses.sum(dtype=torch.float64))
            total.add_(gradient)
        return self._mean(sums), total

    def _mean(self, sums: list[Tensor]) -> Tensor:
        total = sums[0] if len(sums) == 1 else torch.stack(sums).sum()
        return (total / self.n_examples).to(self.dtype)
