"""Per-example gradients of an empirical risk, and what is summed of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from flatmin.risk.arguments import check_point
from flatmin.risk.autodiff.precision import in_full_float32
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.chains.dispatch import over_chains
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.moments import Moments, merge_moments, merged
from flatmin.risk.example_sums.per_example import ROW_BUDGET
from flatmin.risk.network.batch_statistics import needs_examples
from flatmin.risk.quantities.first_order import FirstOrderRisk
from flatmin.risk.ranks.words import gathered, summed

__all__ = ["PerExampleRisk"]


class PerExampleRisk(FirstOrderRisk):
    """gᵢ, their norms, and the diagonal of Σ."""

    @needs_examples
    def per_example_gradients(self, theta: Tensor) -> Iterator[Tensor]:
        """Yield gᵢ of all examples, in order, a chunk at a time, without a penalty.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Yields
        ------
        Tensor of shape (\\*chains, n, D)
        """
        rows = self._gathered_rows if self._ranks.size > 1 else self._own_rows
        yield from rows(theta)

    def _gathered_rows(self, theta: Tensor) -> Iterator[Tensor]:
        check_point(self, theta, "θ")
        theta = theta.clone()  # the caller may change it between
        size = max(1, ROW_BUDGET // self._work_per_example)  # the same on all ranks
        for start in range(0, self.n_examples, size):
            stop = min(start + size, self.n_examples)
            yield self._rows_between(theta, start, stop)

    @summed
    def _rows_between(self, theta: Tensor, start: int, stop: int) -> Tensor:
        """Return gᵢ of examples in a row, 0 of those that are not here."""
        shape = (*theta.shape[:-1], stop - start, self.n_params)
        rows = torch.zeros(shape, dtype=self.dtype, device=self.device)
        some = torch.arange(start, stop, device=self.device)
        shard, local = self._shard.subset(some)
        if shard.counts:
            own = self._rows(theta, self._data.select(local))
            rows.index_copy_(-2, cast(Tensor, shard.rows), own)
        return rows

    @over_chains
    def _own_rows(self, theta: Tensor) -> Iterator[Tensor]:
        with self._lock:
            self._model.bind(theta)
            theta = self._model.theta()  # the caller may ask for another θ between
        chunks = self._chunks(self._row_chunk_size)
        while True:
            # The lock is free between two chunks, because a caller may stop at a yield
            # and never come back.
            with self._lock:
                chunk = next(chunks, None)
                if chunk is None:
                    return
                rows = self._rows(theta, chunk)
            yield rows

    @needs_examples
    @gathered()
    @over_chains
    @in_full_float32
    def squared_norms(self, theta: Tensor) -> Tensor:
        """Return ‖gᵢ‖² of each example.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, N)
            In float64.
        """
        self._model.bind(theta)
        return torch.cat(
            [self._sums.squared_norms(self._scalars(chunk)) for chunk in self._chunks()]
        )

    @needs_examples
    @alone
    def squared_gradient_sum(self, theta: Tensor) -> Tensor:
        """Return Σᵢ gᵢ² of each coordinate.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, D)
            In float64.
        """
        moments = self._moments(theta)
        return moments.centred_squares + self.n_examples * moments.mean.square()

    @needs_examples
    @alone
    def gradient_variances(self, theta: Tensor) -> Tensor:
        """Return diag(Σ) = (1/N) Σᵢ (gᵢ - g₀)², whose sum is Tr(Σ).

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        Tensor of shape (\\*chains, D)
            In float64.
        """
        return self._moments(theta).centred_squares / self.n_examples

    @needs_examples
    @over_chains
    @alone
    def value_gradient_and_variances(
        self, theta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return L(θ), g₀ and diag(Σ) by one sweep.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Returns
        -------
        value : Tensor of shape (\\*chains)
        gradient : Tensor of shape (\\*chains, D)
        variances : Tensor of shape (\\*chains, D)
            In float64.
        """
        moments = self._moments(theta)
        variances = moments.centred_squares / self.n_examples
        value, mean = self._penalised(moments.value, moments.mean)
        return value.to(self.dtype), mean.to(self.dtype), variances

    @over_chains
    @in_full_float32
    def _rows(self, theta: Tensor, chunk: Chunk) -> Tensor:
        self._model.bind(theta)
        return self._sums.rows(self._scalars(chunk))

    @merged
    @over_chains
    @in_full_float32
    def _moments(self, theta: Tensor) -> Moments:
        self._model.bind(theta)
        return merge_moments(
            self._sums.moments(self._scalars(chunk)) for chunk in self._chunks()
        )
