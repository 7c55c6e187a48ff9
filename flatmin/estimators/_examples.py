"""The examples of a fit, in memory or streamed, in the forms that others take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from skorch.dataset import Dataset
from torch import nn

from flatmin._utils.trees import Inputs, Tree, map_inputs
from flatmin.estimators._inputs import network_input
from flatmin.risk.data.source import Source

__all__ = ["Examples", "NestedDataset"]


@dataclass
class Examples:
    """Checked inputs and encoded targets."""

    X: np.ndarray | Tree | Source  # (n, ...)
    y: np.ndarray  # (n, ...)
    has_y: bool = True  # False: y is 0, and the loss is given none

    @property
    def streamed(self) -> bool:
        """Whether the inputs are read whenever they are needed."""
        return isinstance(self.X, Source)

    def take(self, rows: np.ndarray) -> Examples:
        """Return some of the examples, which are in memory.

        Parameters
        ----------
        rows : ndarray of shape (n,), int

        Returns
        -------
        examples : Examples

        Raises
        ------
        TypeError
            If they are read from a data set.
        """
        if isinstance(self.X, Source):
            raise TypeError("A data set is read in its order. Got rows of one.")
        return Examples(self.X[rows], self.y[rows])

    def for_risk(self) -> tuple[Any, Any]:
        """Return X and y as :class:`flatmin.EmpiricalRisk` takes them."""
        if isinstance(self.X, Source):
            return self.X.with_targets(torch.as_tensor(self.y)), None
        return self.X, self.y if self.has_y else None

    def for_skorch(self, module: nn.Module, dtype: torch.dtype) -> Dataset:
        """Return the skorch data set, whose ``X`` and ``y`` callbacks see."""
        if isinstance(self.X, Source):
            return _Streamed(self.X, self.y, module, dtype)
        X, y = network_input(self.X, module, dtype), self.y if self.has_y else None
        return NestedDataset(X, y) if isinstance(X, Tree) else Dataset(X, y)

    def first_input(self) -> Inputs:
        """Return X of one example, shape (1, ...)."""
        if isinstance(self.X, Source):
            return self.X.read([0])[0]
        return map_inputs(lambda leaf: torch.as_tensor(leaf.copy()), self.X[:1])

    def identity(self) -> list[Any]:
        """Return what tells these data from others: for a data set, its checksums."""
        streamed = isinstance(self.X, Source)
        X = self.first_input() if streamed else self.X
        y = self.y if self.has_y else None
        known = [X.unpacked() if isinstance(X, Tree) else X, y]
        return [*known, self.X.checksums] if isinstance(self.X, Source) else known


class NestedDataset(Dataset):
    """A skorch data set of a mapping or a tuple, also of nested ones."""

    def __init__(self, tree: Tree, y: np.ndarray | None) -> None:
        self.tree = tree
        self.X = tree.unpacked()
        self.y = y

    def __len__(self) -> int:
        return len(self.tree)

    def __getitem__(self, index: int) -> Any:
        y = None if self.y is None else self.y[index]
        return self.transform(self.tree[index].unpacked(), y)


class _Streamed(Dataset):
    """A skorch data set that reads; scores, which want X by itself, get all of it."""

    def __init__(
        self, source: Source, y: np.ndarray, module: nn.Module, dtype: torch.dtype
    ) -> None:
        self.source = source
        self.y = y
        self.module = module
        self.dtype = dtype

    @property
    def X(self) -> _Streamed:  # noqa: N802 - skorch's name
        return self

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        X = self.source.read([int(index)])[0]
        first = network_input(X, self.module, self.dtype)[0]
        return first.unpacked() if isinstance(first, Tree) else first, self.y[index]
