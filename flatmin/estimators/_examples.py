"""The examples of a fit, in memory or streamed, in the forms that others take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from skorch.dataset import Dataset
from torch import Tensor, nn

from flatmin.estimators._inputs import network_input
from flatmin.risk.data.source import Source

__all__ = ["Examples"]


@dataclass
class Examples:
    """Checked inputs and encoded targets."""

    X: np.ndarray | Source  # (n, ...)
    y: np.ndarray  # (n, ...)

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
        return self.X, self.y

    def for_skorch(self, module: nn.Module, dtype: torch.dtype) -> Dataset:
        """Return the skorch data set, whose ``X`` and ``y`` callbacks see."""
        if isinstance(self.X, Source):
            return _Streamed(self.X, self.y, module, dtype)
        return Dataset(network_input(self.X, module, dtype), self.y)

    def first_input(self) -> Tensor:
        """Return X of one example, shape (1, ...)."""
        if isinstance(self.X, Source):
            return self.X.read([0])[0]
        return torch.as_tensor(self.X[:1].copy())


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
        return network_input(X, self.module, self.dtype)[0], self.y[index]
