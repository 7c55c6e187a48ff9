"""Per-example gradients of an empirical risk, and what is summed of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flatmin.risk.autodiff.precision import in_full_float32
from flatmin.risk.autodiff.surroundings import alone
from flatmin.risk.chains.dispatch import over_chains
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.moments import Moments, merge_moments
from flatmin.risk.network.batch_statistics import needs_examples
from flatmin.risk.quantities.first_order import FirstOrderRisk

__all__ = ["PerExampleRisk"]


class PerExampleRisk(FirstOrderRisk):
    """gᵢ, their norms, and the diagonal of Σ."""

    @needs_examples
    @over_chains
    def per_example_gradients(self, theta: Tensor) -> Iterator[Tensor]:
        """Yield gᵢ of all examples, in order, a chunk at a time, without a penalty.

        Parameters
        ----------
        theta : Tensor of shape (\\*chains, D)

        Yields
        ------
        Tensor of shape (\\*chains, n, D)
        """
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
        return self._moments(theta).centred_squares.div_(self.n_examples)

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
        variances = moments.centred_squares.div_(self.n_examples)
        value, mean = self._penalised(moments.value, moments.mean)
        return value.to(self.dtype), mean.to(self.dtype), variances

    @in_full_float32
    def _rows(self, theta: Tensor, chunk: Chunk) -> Tensor:
        self._model.bind(theta)
        return self._sums.rows(self._scalars(chunk))

    @over_chains
    @in_full_float32
    def _moments(self, theta: Tensor) -> Moments:
        self._model.bind(theta)
        return merge_moments(
            self._sums.moments(self._scalars(chunk)) for chunk in self._chunks()
        )
