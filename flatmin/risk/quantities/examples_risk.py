"""What all quantities of an empirical risk share: θ, the examples, the sums."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from flatmin._utils.locks import Lock
from flatmin.risk.arguments import as_indices, within
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.chains.dispatch import over_chains
from flatmin.risk.chains.ways import ChainWays
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.data.example_data import ArrayData, ExampleData
from flatmin.risk.example_sums.scalars import (
    ExampleScalars,
    losses_and_gradient,
)
from flatmin.risk.example_sums.sums import ExampleSums
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.layout import ParameterLayout
from flatmin.risk.network.loss_module import as_held
from flatmin.risk.network.model import FlatModel
from flatmin.risk.network.module_update import comparable
from flatmin.risk.products.example_hessians import ExampleHessians
from flatmin.risk.products.graphs import ProductGraphs
from flatmin.risk.products.linearize import Linearization
from flatmin.risk.products.product_ways import ProductWays

__all__ = ["ExamplesRisk"]


class ExamplesRisk:
    """A network, a loss and N examples, and the loop over chunks of them."""

    device: torch.device
    dtype: torch.dtype
    output_shape: tuple[int, ...]
    chunk_size: int
    l2: float
    _model: FlatModel
    _loss: ExampleLoss
    _data: ExampleData
    _few: Chunk  # up to 16 examples, to try things on
    _theta: Tensor
    _uniform: Tensor  # (N,) of 1/N
    _sums: ExampleSums
    _chain_ways: ChainWays
    _over_chains: Any  # OverChains, which knows all words
    _hessians: ExampleHessians
    _ways: ProductWays
    _graphs: ProductGraphs
    _all_graphs: dict[tuple[int, int], ProductGraphs]
    _row_chunk_size: int
    _work_per_example: int

    @property
    def layout(self) -> ParameterLayout:
        """Order and shapes of the parameters in θ."""
        return self._model.layout

    @property
    def n_params(self) -> int:
        """D."""
        return self._model.layout.n_params

    @property
    def n_examples(self) -> int:
        """N."""
        return len(self._data)

    @property
    def n_outputs(self) -> int:
        """Numbers in one example's output."""
        return torch.Size(self.output_shape).numel()

    @property
    def keeps_graph(self) -> bool:
        """Whether the module computes something else where gradients are off.

        Then they are on for values and outputs, too.
        """
        return self._model.keeps_graph

    @property
    def paths(self) -> dict[str, str]:
        """Which kernels ran: for each quantity the fast one's name, or why not."""
        with self._lock:
            tried = {
                "per-example sums": self._sums.path,
                "per-example Hessians": self._hessians.path,
            }
            found = {name: path for name, path in tried.items() if path is not None}
            return {
                **self._graphs.describe(),
                **found,
                **self._chain_ways.paths,
            }

    @property
    def _lock(self) -> Lock:
        return self._model.lock

    def params(self) -> Tensor:
        """Return the θ that the risk was made with, or was last set to.

        The module's parameters at construction; where an estimator has trained, the
        ones that it ended with.

        Returns
        -------
        Tensor of shape (D,)
            A copy.
        """
        return self._theta.clone()

    @alone
    def set_params(self, theta: Tensor) -> None:
        """Make θ what :meth:`params` returns.

        Parameters
        ----------
        theta : Tensor of shape (D,)
            Copied.
        """
        self._model.bind(theta)
        self._theta = self._model.theta()

    @alone
    def update_from(self, module: nn.Module) -> None:
        """Take over what a module holds now, so that one risk serves a whole training.

        θ, which :meth:`params` then returns, the parameters that are not trained, and
        the buffers, such as the running statistics of BatchNorm. Subsets of the risk
        share the network: they see the new buffers, but have a θ of their own.

        Parameters
        ----------
        module : torch.nn.Module
            That the risk was made with, or one of the same form, in any mode, dtype
            and place. It is not touched.

        Raises
        ------
        ValueError
            If it has other names or shapes, or computes something else at the same
            parameters; the risk stays as it was then.

        Examples
        --------
        >>> from flatmin import EmpiricalRisk
        >>> net = nn.Linear(1, 1, bias=False)
        >>> risk = EmpiricalRisk(net, "squared_error", [[1.0]], [[0.0]])
        >>> _ = nn.init.constant_(net.weight, 3.0)
        >>> risk.update_from(net)
        >>> risk.value(risk.params())
        tensor(9.)
        """
        module = as_held(self._model.module, module)
        self._model.take_over(comparable(module), self._few.X)
        self._theta = self._model.theta()

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
        with within("indices", self.n_examples):
            chosen = self._data.select(indices)
        part = copy.copy(self)
        # Chunks of one size: a graph fills up the last one.
        n_chunks = math.ceil(len(indices) / self.chunk_size)
        part._hold(
            ArrayData(chosen.X, chosen.y, chosen.weights),
            math.ceil(len(indices) / n_chunks),
        )
        return part

    @over_chains
    @alone
    def linearize(self, theta: Tensor) -> Linearization:
        """Prepare θ for many products with H, G and J.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
            Copied: the prepared point stays where it is.

        Returns
        -------
        Linearization or ChainLinearization
            With ``hvp``, ``ggn``, ``jvp``, ``vjp`` and ``directional_derivatives``;
            its ``paths`` tell how each was computed.
        """
        self._model.bind(theta)
        return Linearization(
            self._graphs,
            self._chunks,
            self._model.theta(),
            self.n_examples,
            self.output_shape,
            l2=self.l2,
        )

    def _hold(self, examples: ExampleData, chunk_size: int) -> None:
        n = len(examples)
        self._data = examples
        self.chunk_size = chunk_size
        self._uniform = torch.full((n,), 1 / n, dtype=self.dtype, device=self.device)
        if (n, chunk_size) not in self._all_graphs:
            self._all_graphs[n, chunk_size] = ProductGraphs(
                self._ways, chunk_size, n * self._work_per_example
            )
        self._graphs = self._all_graphs[n, chunk_size]

    def _chunks(self, chunk_size: int | None = None) -> Iterator[Chunk]:
        size = self.chunk_size if chunk_size is None else chunk_size
        return self._data.iterate(size)

    def _targets(self) -> Tensor:
        return torch.cat([chunk.y for chunk in self._chunks()])

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
        """Add (λ/2)‖θ‖² of the bound θ to a value, and its gradient to a gradient."""
        if not self.l2:
            return value, gradient
        theta = self._model.theta()
        return self._with_penalty(value), gradient.add_(theta, alpha=self.l2)

    def _with_penalty(self, value: Tensor) -> Tensor:
        if not self.l2:
            return value
        square = self._model.theta().double().square().sum()
        return (value.double() + self.l2 / 2 * square).to(self.dtype)

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
