"""The loss, the outputs and the gradients of an empirical risk."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from flatmin._utils.arrays import check_tensor
from flatmin.risk.arguments import as_direction, as_indices, within
from flatmin.risk.autodiff.precision import in_full_float32
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.chains.dispatch import over_chains
from flatmin.risk.data.chunks import iterate_chunks
from flatmin.risk.example_sums.scalars import (
    evaluate_losses,
    losses_and_gradient,
)
from flatmin.risk.network.batch_statistics import (
    Statistics,
    needs_examples,
    recorded_statistics,
    write_statistics,
)
from flatmin.risk.network.loss_module import LossModule
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.quantities.examples_risk import ExamplesRisk
from flatmin.risk.quantities.penalty import value_with_penalty
from flatmin.risk.ranks.words import gathered, summed

__all__ = ["FirstOrderRisk"]


class FirstOrderRisk(ExamplesRisk):
    """L and its gradients: of all examples, weighted, and of minibatches."""

    @summed
    @over_chains
    @in_full_float32
    def value(self, theta: Tensor) -> Tensor:
        """Return L(θ).

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains)
        """
        self._model.bind(theta)
        sums = [
            evaluate_losses(self._model, self._loss, chunk).sum(dtype=torch.float64)
            for chunk in self._chunks()
        ]
        value, l2 = self._mean(sums), self._ranks.once(self.l2)
        return value_with_penalty(value, self._model.theta(), l2) if l2 else value

    def losses_at(self, thetas: Tensor) -> Tensor:
        """Return L at several points.

        Parameters
        ----------
        thetas : Tensor of shape (M, D)

        Returns
        -------
        Tensor of shape (M,)
        """
        check_tensor("thetas", thetas, 2)
        return torch.stack([self.value(theta) for theta in thetas])

    @gathered()
    @over_chains
    @in_full_float32
    def outputs(self, theta: Tensor) -> Tensor:
        """Return the network's outputs on X.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, N, \\*output_shape)
        """
        self._model.bind(theta)
        return torch.cat([self._model.evaluate(chunk.X) for chunk in self._chunks()])

    def accuracy(self, theta: Tensor) -> Tensor:
        """Return the share of the targets whose class has the largest output.

        All targets count alike that are not ignored, in whatever example; weights do
        not count. With ``loss="next_token"`` an output is compared with the next label,
        with ``loss="binary_cross_entropy"`` each output by its sign.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        Tensor of shape ()
            In float64. NaN where an output is NaN, or no target counts.

        Raises
        ------
        ValueError
            If the targets are no classes.

        Examples
        --------
        >>> from flatmin import EmpiricalRisk
        >>> X, y = [[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]], [0, 1, -100]
        >>> risk = EmpiricalRisk(torch.nn.Linear(2, 2), "cross_entropy", X, y)
        >>> risk.accuracy(torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.0]))
        tensor(1., dtype=torch.float64)
        """
        n_right, n_counted, n_wild = self._count_right(theta)
        share: Tensor = n_right / n_counted
        return share.masked_fill(n_wild > 0, torch.nan)

    @summed
    @in_full_float32
    def _count_right(self, theta: Tensor) -> Tensor:
        """Return how many outputs are right, how many count, and how many are NaN."""
        self._model.bind(theta)
        counts = torch.zeros(3, dtype=torch.float64, device=self.device)
        for chunk in self._chunks():
            outputs = self._model.evaluate(chunk.X)
            right = self._loss.right(outputs, chunk.y)
            wild = outputs.isnan().sum()
            counts[0] += right.sum()
            counts[1] += len(right)
            counts[2] += wild
        return counts

    @in_full_float32
    def batch_statistics(self, theta: Tensor) -> Statistics:
        """Return mean and variance of what each BatchNorm takes in, by one pass a θ.

        With them as running statistics, the network in evaluation mode has the outputs
        on X that it has with the statistics of the batch.

        Parameters
        ----------
        theta : Tensor of shape (D,)

        Returns
        -------
        dict of str to (mean, variance), each of shape (channels,)
            By the layer's name in the module. The variance has the number of entries
            of a channel as its divisor, not one less as PyTorch's running variance.

        Raises
        ------
        ValueError
            Unless the risk was made with ``batch_norm="batch"``, and has a BatchNorm.
        """
        if not self._model.normalises_batch:
            raise ValueError(
                "batch_statistics are those of a BatchNorm under batch_norm='batch'. "
                "Got a risk without; make it with batch_norm='batch', or read the "
                "running statistics from the buffers of the module."
            )
        self._model.bind(theta)
        # A fit asks for them at one θ when it records, and when it writes them.
        key, theta = self._model.n_updates, self._model.theta()
        kept = self._statistics
        if kept is None or kept[0] != key or not torch.equal(kept[1], theta):
            with recorded_statistics(self._model.module) as statistics:
                for chunk in self._chunks():
                    self._model.evaluate(chunk.X)
            kept = self._statistics = key, theta, statistics
        return {
            name: (mean.clone(), variance.clone())
            for name, (mean, variance) in kept[2].items()
        }

    @alone
    def frozen_module(self) -> nn.Module:
        """Return a copy of the network at :meth:`params`, in eval mode.

        Returns
        -------
        torch.nn.Module
            With the buffers, and the parameters that are not trained, as the risk holds
            them. After ``batch_norm="batch"`` the statistics of the examples are the
            running ones.

        Examples
        --------
        >>> from flatmin import EmpiricalRisk
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> risk = EmpiricalRisk(net, "squared_error", [[1.0]], [2.0])
        >>> risk.set_params(torch.tensor([3.0]))
        >>> risk.frozen_module().weight.item()
        3.0
        """
        theta = self.params()
        statistics = self.batch_statistics(theta) if self.batch_norm == "batch" else {}
        self._model.bind(theta)
        module = copy_module(self._model.module)
        write_statistics(module, statistics)
        return module.module if isinstance(module, LossModule) else module

    @summed
    @over_chains
    @in_full_float32
    def gradient(self, theta: Tensor) -> Tensor:
        """Return g₀ = ∇L(θ).

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, D)
        """
        return self.value_and_gradient(theta)[1]

    @summed
    @over_chains
    @alone
    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return L(θ) and ∇L(θ) by one pass.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        value : Tensor of shape (\\*chains)
        gradient : Tensor of shape (\\*chains, D)
        """
        return self._penalised(*self._pull_back(theta, self._uniform))

    @needs_examples
    @summed
    @over_chains
    @in_full_float32
    def weighted_gradient(self, theta: Tensor, v: Tensor) -> Tensor:
        """Return Σ vᵢ gᵢ / N; v is never normalised, and no penalty is in it.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        v : Tensor of shape (\\*chains, N)
            Of any sign.

        Returns
        -------
        Tensor of shape (\\*chains, D)
        """
        v = as_direction(v, "v", (self.n_examples,), self._uniform)
        return self._pull_back(theta, v / self.n_examples)[1]

    @needs_examples
    @summed
    @over_chains
    @alone
    def value_and_noisy_gradient(
        self, theta: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return L(θ) and g₀ + Σ vᵢ gᵢ / N by one backward pass.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        v : Tensor of shape (\\*chains, N)

        Returns
        -------
        value : Tensor of shape (\\*chains)
        gradient : Tensor of shape (\\*chains, D)

        Raises
        ------
        ValueError, TypeError
            If v is no tensor of that shape.
        """
        v = as_direction(v, "v", (self.n_examples,), self._uniform)
        return self._penalised(*self._pull_back(theta, (v + 1) / self.n_examples))

    @needs_examples
    @summed
    @over_chains
    def batch_gradient(self, theta: Tensor, indices: Tensor) -> Tensor:
        """Return the plain mean of gᵢ over a minibatch, with the penalty's gradient.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        indices : Tensor of shape (\\*chains, m)
            Which examples; one may come twice.

        Returns
        -------
        Tensor of shape (\\*chains, D)
        """
        return self.value_and_batch_gradient(theta, indices)[1]

    @needs_examples
    @summed
    @over_chains
    @alone
    def value_and_batch_gradient(
        self, theta: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the plain means of ℓ̃ᵢ and gᵢ over a minibatch, with the penalty.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        indices : Tensor of shape (\\*chains, m)

        Returns
        -------
        value : Tensor of shape (\\*chains)
        gradient : Tensor of shape (\\*chains, D)

        Raises
        ------
        ValueError, TypeError
            If there are no indices, or they are no integers along one axis.
        """
        indices = as_indices(indices, "indices", 1, self.device)
        m = len(indices)
        self._model.bind(theta)
        with within("indices", self.n_examples):
            shard, local = self._shard.subset(indices)
            chosen = self._data.select(local)
        parts = iterate_chunks(chosen.X, chosen.y, chosen.weights, self.chunk_size)
        cotangents = torch.full(
            local.shape, 1 / m, dtype=self.dtype, device=self.device
        )
        value, gradient = self._add(
            losses_and_gradient(self._model, self._loss, chunk, cotangents[chunk.rows])
            for chunk in parts
        )
        if not shard.counts:  # none of them is here
            value, gradient = value.zero_(), gradient.zero_()
        return self._penalised(value * (self.n_examples / m), gradient)

    @needs_examples
    @summed
    @over_chains
    @in_full_float32
    def batch_gradients(self, theta: Tensor, batches: Tensor) -> Tensor:
        """Return the mean gradient of each of b minibatches.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)
        batches : Tensor of shape (\\*chains, b, m)
            Indices of examples.

        Returns
        -------
        Tensor of shape (\\*chains, b, D)
        """
        batches = as_indices(batches, "batches", 2, self.device)
        self._model.bind(theta)
        m = batches.shape[1]
        with within("batches", self.n_examples):
            local, counted = self._shard.of_batches(batches)
        width = local.shape[1]
        per_chunk = max(1, self.chunk_size // width)
        parts = []
        for start in range(0, len(batches), per_chunk):
            some = slice(start, start + per_chunk)
            with within("batches", self.n_examples):
                chunk = self._data.select(local[some].flatten())
            if counted is not None:
                counts = counted[some].flatten().to(self.dtype)
                chunk = replace(chunk, weights=chunk.weigh(counts))
            sums = self._sums.batch_sums(self._scalars(chunk), width)
            if sums is None:
                return torch.stack([self.batch_gradient(theta, b) for b in batches])
            parts.append(sums / m)
        gradients = torch.cat(parts)
        if l2 := self._ranks.once(self.l2):
            gradients.add_(self._model.theta(), alpha=l2)
        return gradients
