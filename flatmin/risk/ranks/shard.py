"""Which of the examples of all ranks one rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

__all__ = ["Shard", "of_rows"]


@dataclass(frozen=True)
class Shard:
    """Which of the N examples of all ranks are here."""

    n_examples: int  # N
    rows: Tensor | None = None  # (n,) their places among the N; None for all
    counts: bool = True  # False: one example stands in for none, and counts nothing

    @property
    def n_own(self) -> int:
        """How many of the examples count here."""
        if self.rows is None:
            return self.n_examples
        return len(self.rows) if self.counts else 0

    def place(self, local: slice) -> slice | Tensor:
        """Return the places of some of the examples that are here."""
        return local if self.rows is None else self.rows[local]

    @cached_property
    def _here(self) -> Tensor:
        """Where each of the N is among those that are here, or -1."""
        rows = cast(Tensor, self.rows)[: self.n_own]
        here = rows.new_full((self.n_examples,), -1)
        here[rows] = torch.arange(len(rows), device=rows.device)
        return here

    def subset(self, indices: Tensor) -> tuple[Shard, Tensor]:
        """Return the shard of some of the N examples, and where they are here.

        Parameters
        ----------
        indices : Tensor of shape (m,)
            From -N to N - 1.

        Returns
        -------
        shard : Shard
            Of the m.
        local : Tensor of shape (n,)
            The first example that is here has number 0.

        Raises
        ------
        IndexError
            If there is no such example.
        """
        if self.rows is None:
            return Shard(len(indices)), indices
        local = self._here[indices]
        rows = (local >= 0).nonzero().flatten()
        here = local[rows] if len(rows) else rows.new_zeros(1)
        return of_rows(rows, len(indices)), here

    def spread(self, part: Tensor, axis: int = 0) -> Tensor:
        """Return what belongs to the examples that are here, and 0 for the others.

        The sum over all ranks is what belongs to all examples, in their order.

        Parameters
        ----------
        part : Tensor
            Of the examples that are here, along ``axis``.
        axis : int, default=0

        Returns
        -------
        Tensor
            With N along ``axis``.
        """
        if self.rows is None:
            return part
        shape = (*part.shape[:axis], self.n_examples, *part.shape[axis + 1 :])
        whole = torch.zeros(shape, dtype=part.dtype, device=part.device)
        if self.counts:
            whole.index_copy_(axis, self.rows, part.detach())
        return whole


def of_rows(rows: Tensor, n_examples: int) -> Shard:
    """Return a shard; where it has no rows, one example stands in.

    Parameters
    ----------
    rows : Tensor of shape (n,)
    n_examples : int
        N.

    Returns
    -------
    Shard
    """
    if len(rows):
        return Shard(n_examples, rows)
    return Shard(n_examples, rows.new_zeros(1), counts=False)
