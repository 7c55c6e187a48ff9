"""Examples that are read a chunk at a time, and given the form that a risk needs."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from flatmin._utils.trees import Inputs
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.data.inputs import as_input, as_inputs, as_tensor, channels_last
from flatmin.risk.data.source import Source
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel

__all__ = ["StreamedData"]


class StreamedData:
    """Examples that are read, moved and given their form whenever they are needed.

    Parameters
    ----------
    source : Source
    weights : Tensor of shape (N,) or None
        N wᵢ / Σw.
    model : FlatModel
    loss : ExampleLoss
    output : Tensor of shape (1, \\*output_shape)
        Of one example.
    by_rows : bool
        Whether the module cannot take images channels-last.
    """

    def __init__(
        self,
        source: Source,
        weights: Tensor | None,
        model: FlatModel,
        loss: ExampleLoss,
        output: Tensor,
        *,
        by_rows: bool,
    ) -> None:
        self.source = source
        self.weights = weights
        self.model = model
        self.loss = loss
        self.output = output
        self.by_rows = by_rows

    def __len__(self) -> int:
        return len(self.source)

    def iterate(self, chunk_size: int) -> Iterator[Chunk]:
        """See :meth:`ExampleData.iterate`."""
        start = 0
        for X, y in self.source.batches(chunk_size):
            rows = slice(start, start + len(X))
            weights = None if self.weights is None else self.weights[rows]
            yield self._chunk(X, y, weights, rows)
            start = rows.stop

    def select(self, indices: Tensor) -> Chunk:
        """See :meth:`ExampleData.select`."""
        X, y = self.source.read(indices.tolist())
        weights = None if self.weights is None else self.weights[indices]
        return self._chunk(X, y, weights, slice(0, len(X)))

    def part(self, indices: Tensor) -> StreamedData:
        """See :meth:`ExampleData.part`."""
        data = copy.copy(self)
        data.source = self.source.part(indices.tolist())
        data.weights = None if self.weights is None else self.weights[indices]
        return data

    def target_weights(self, loss: ExampleLoss, size: int) -> Tensor | None:
        """See :meth:`ExampleData.target_weights`."""
        if loss.target_weights(self._targets(self.source.read([0])[1])) is None:
            return None
        targets = self.source.all_targets(size)
        parts = [loss.target_weights(self._targets(y)) for y in targets]
        return torch.cat([part for part in parts if part is not None])

    def arguments(self) -> tuple[Source, None]:
        """See :meth:`ExampleData.arguments`."""
        return self.source, None

    def _chunk(
        self, X: Inputs, y: Tensor, weights: Tensor | None, rows: slice
    ) -> Chunk:
        device = self.output.device
        X = as_inputs(X, device)
        X = as_input(X, self.model.module, self.output.dtype)
        if not self.by_rows:
            X = channels_last(X, self.model.module)
        return Chunk(X, self._targets(y), weights, rows)

    def _targets(self, y: Tensor) -> Tensor:
        y = as_tensor(y, "y", self.output.device)
        return self.loss.prepare_targets(y, self.output)
