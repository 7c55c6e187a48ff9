"""X and y as they are handed to a risk, read: all of arrays, some of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatmin._utils.trees import Inputs
from flatmin.risk.data.beside_targets import beside_targets
from flatmin.risk.data.example_data import ArrayData, ExampleData
from flatmin.risk.data.inputs import (
    as_input,
    as_inputs,
    as_tensor,
    check_apart,
    check_held,
    check_lengths,
)
from flatmin.risk.data.source import Source, find_source, split_targets
from flatmin.risk.data.streamed_data import StreamedData
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.loss_module import LossModule
from flatmin.risk.network.model import FlatModel
from flatmin.risk.network.module_checks import trainable

__all__ = ["N_TRIED", "OpenedData", "open_data", "trial_indices"]

N_TRIED = 16


@dataclass(frozen=True)
class OpenedData:
    """Inputs and targets: all N, or a few that stand for those of a source."""

    X: Inputs  # (n, ...)
    y: Tensor  # (n, ...)
    source: Source | None

    def __len__(self) -> int:
        """Return N."""
        return len(self.X if self.source is None else self.source)

    def as_examples(
        self, model: FlatModel, loss: ExampleLoss, output: Tensor, *, by_rows: bool
    ) -> ExampleData:
        """Return all N examples, without weights.

        Parameters
        ----------
        model : FlatModel
        loss : ExampleLoss
        output : Tensor of shape (1, \\*output_shape)
            By these three a source gives y in the loss's form, as it is here.
        by_rows : bool
            Whether the module takes inputs by rows, as they are here.

        Returns
        -------
        ExampleData
        """
        if self.source is None:
            return ArrayData(self.X, self.y, None)
        return StreamedData(self.source, None, model, loss, output, by_rows=by_rows)


def open_data(
    X: Any, y: Any, target: str | None, *, module: nn.Module, joins: bool
) -> OpenedData:
    """Return X and y as a module takes them.

    Parameters
    ----------
    X : array-like, mapping, tuple, or a data set
    y : array-like of shape (N, ...) or None
    target : str or None
        The name of y in X.
    module : torch.nn.Module
        In the place and the dtype of the work.
    joins : bool
        Whether it is given X and y together, as one that computes losses.

    Returns
    -------
    OpenedData

    Raises
    ------
    ValueError
        If X and y differ in length; others as from the functions that read them.
    """
    first = trainable(module)[0]
    X, y = split_targets(X, y, target)
    if joins and isinstance(module, LossModule):
        inner: Any = {"module": module.module, "like": first}
        X, y = beside_targets(X, y, target, **inner)
    source = find_source(X, y, target)
    if source is not None:
        X, y = source.read(trial_indices(len(source)).tolist())
    inputs = as_inputs(X, first.device, held_in=first.dtype)
    targets = as_tensor(y, "y", first.device, held_in=first.dtype)
    check_lengths(inputs, targets)
    held = as_input(inputs, module, first.dtype)
    check_held(held, inputs, "X")
    if not (isinstance(held, Tensor) and held.dtype == torch.long):  # indices
        check_apart(inputs, first.dtype, "X")
    if targets.is_floating_point():
        check_apart(targets, first.dtype, "y")
    return OpenedData(held, targets, source)


def trial_indices(n_examples: int) -> Tensor:
    """Return up to 16 examples to try things on: spread, with the last, shuffled.

    Parameters
    ----------
    n_examples : int
        N.

    Returns
    -------
    Tensor of shape (n,)
    """
    spread = torch.linspace(
        0, n_examples - 1, min(N_TRIED, n_examples), device="cpu"
    ).long()
    rng = torch.Generator().manual_seed(0)
    return spread[torch.randperm(len(spread), generator=rng, device="cpu")]
