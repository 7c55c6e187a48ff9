"""The part of the examples that one rank reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flatmin._utils.trees import leaves_of
from flatmin.risk.data.example_data import ExampleData
from flatmin.risk.data.opened_data import OpenedData, trial_indices
from flatmin.risk.ranks.collectives import Ranks
from flatmin.risk.ranks.shard import Shard, of_rows

__all__ = ["SharedData", "own_shard", "share_out"]


class SharedData(NamedTuple):
    """What one rank holds, and what it tries things on."""

    shard: Shard
    own: ExampleData  # n of them
    tried: ExampleData  # all N, the same on all ranks, where this rank has them

    def set_weights(self, weights: Tensor | None) -> None:
        """Set N wᵢ / Σw, given for all N, or for this rank's own examples."""
        self.tried.weights = self.own.weights = weights
        rows = self.shard.rows
        if weights is not None and rows is not None and len(weights) != len(rows):
            self.own.weights = weights[rows]


def share_out(
    opened: OpenedData, examples: ExampleData, ranks: Ranks, known: Shard | None
) -> SharedData:
    """Return this rank's part: examples rank, rank + p, ..., or its own ``Subset``.

    Parameters
    ----------
    opened : OpenedData
    examples : ExampleData
        Of it.
    ranks : Ranks
    known : Shard or None
        Which part ``examples`` are, where that is known.

    Returns
    -------
    SharedData

    Raises
    ------
    ValueError
        If all ranks give the same ``Subset``.
    """
    if known is not None or ranks.size == 1:
        return SharedData(known or Shard(len(examples)), examples, examples)
    device = opened.y.device
    few = examples.select(trial_indices(len(examples)).to(device))
    held = (*leaves_of(few.X), few.y)
    source = opened.source
    if source is None or not source.is_subset:
        ranks.agree("EmpiricalRisk", torch.tensor(len(examples)), *held)
        n = len(examples)
        rows = torch.arange(n, device=device)[ranks.rank :: ranks.size]
        part = rows if len(rows) else rows.new_zeros(1)
        return SharedData(of_rows(rows, n), examples.part(part), examples)
    shard = own_shard(len(examples), ranks, device)
    if not ranks.differ(*held):
        raise ValueError(
            "A Subset is this rank's own part of the examples. Got the same one on "
            "all ranks: give each rank indices of its own, or give all of them the "
            "data set itself, of which each reads its part."
        )
    return SharedData(shard, examples, examples)


def own_shard(n: int, ranks: Ranks, device: torch.device) -> Shard:
    """Return the shard of a rank with examples of its own, after those of lower ranks.

    Parameters
    ----------
    n : int
        How many this rank has.
    ranks : Ranks
    device : torch.device
        Where the ranks' collectives run.

    Returns
    -------
    Shard
    """
    ranks.agree("the shards")
    counts = torch.zeros(ranks.size, dtype=torch.long, device=device)
    counts[ranks.rank] = n
    (counts,) = ranks.sum(counts)
    before, total = int(counts[: ranks.rank].sum()), int(counts.sum())
    return of_rows(torch.arange(before, before + n, device=device), total)
