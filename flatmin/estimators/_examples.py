"""The examples of a fit, in memory or streamed, in the forms that others take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from skorch.dataset import Dataset
from torch import nn

from flatmin._utils.arrays import to_array
from flatmin._utils.trees import Inputs, Tree, leaves_of, map_inputs
from flatmin.estimators._inputs import network_input
from flatmin.estimators._own_part import OwnPart
from flatmin.risk.data.source import Source

__all__ = ["Examples", "NestedDataset"]


@dataclass
class Examples:
    """Checked inputs and encoded targets."""

    X: np.ndarray | Tree | Source  # (n, ...)
    y: np.ndarray  # (N, ...)
    has_y: bool = True  # False: y is 0, and the loss is given none
    # This rank's part, where X holds that alone; y is of all ranks.
    own: OwnPart | None = None

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
            return self.X.with_targets(torch.as_tensor(self.of_own(self.y))), None
        return self.X, self.y if self.has_y else None

    def for_skorch(self, module: nn.Module, dtype: torch.dtype) -> Dataset:
        """Return the skorch data set, whose ``X`` and ``y`` callbacks see."""
        if isinstance(self.X, Source):
            return _Streamed(self.X, self.of_own(self.y), module, dtype)
        X, y = network_input(self.X, module, dtype), self.y if self.has_y else None
        return NestedDataset(X, y) if isinstance(X, Tree) else Dataset(X, y)

    def first_input(self) -> Inputs:
        """Return X of one example, shape (1, ...)."""
        if isinstance(self.X, Source):
            return self.X.read([0])[0]
        return map_inputs(lambda leaf: torch.as_tensor(leaf.copy()), self.X[:1])

    def identity(self) -> list[Any]:
        """Return what tells these data from others: for a data set, its checksums."""
        y = self.y if self.has_y else None
        if not isinstance(self.X, Source):
            return [self.X.unpacked() if isinstance(self.X, Tree) else self.X, y]
        X, checksums = self.first_input(), self.X.checksums
        if self.own is None or checksums is None:
            return [X.unpacked() if isinstance(X, Tree) else X, y, checksums]
        # What all ranks say alike.
        kinds = [(leaf.shape, leaf.dtype) for leaf in leaves_of(X)]
        return [kinds, y, self.own.of_all("checksums", checksums)]

    def weights_of_all(self, sample_weight: Any) -> Any:
        """Return the weights of the N examples, where X has its part's alone.

        Parameters
        ----------
        sample_weight : array-like of shape (n,) or None

        Returns
        -------
        array-like of shape (N,) or None

        Raises
        ------
        TypeError, ValueError
            If they are not n numbers.
        """
        if self.own is None or sample_weight is None:
            return sample_weight
        weights = to_array("sample_weight", sample_weight, (len(self.own.rows),))
        return self.own.of_all("sample_weight", weights)

    def of_own(self, values: np.ndarray) -> np.ndarray:
        """Return what belongs to the examples of X, of an array for all N.

        Parameters
        ----------
        values : ndarray of shape (N, ...)

        Returns
        -------
        ndarray of shape (n, ...)
        """
        return values if self.own is None else values[self.own.rows]


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
