"""What a rule says: how the rows of one parameter follow from a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flatmin.risk.example_sums.factors import Factors

__all__ = ["InputAndRules", "RowRule", "sum_of_channels"]


@dataclass(frozen=True)
class RowRule:
    """How the rows of one parameter follow from a call: row = rule(input, slope)."""

    # (input, slope) of n examples to their rows, (n, P).
    rows: Callable[[Tensor, Tensor], Tensor]
    restore: Callable[[Tensor], Tensor] = lambda sums: sums  # (..., P) to row-major
    # (input, slope, m) to the sums of m rows each, (n / m, P), without the rows.
    batch_sums: Callable[[Tensor, Tensor, int], Tensor] | None = None
    # (input, slope) to what the row is a product of, and the order that makes.
    factors: Callable[[Tensor, Tensor], Factors] | None = None
    order: str = "o i"
    patch_size: int = 0  # numbers that are gathered for a position
    n_other_numbers: int = 0  # other numbers that a row comes from
    # Where most of a row is zero (embeddings): the other blocks, and their values.
    nonzero_blocks: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def sums(self, input: Tensor, slope: Tensor, m: int) -> Tensor:
        """Return the sums of the rows of m consecutive examples each, (n / m, P)."""
        if m == 1:
            return self.rows(input, slope)
        if self.batch_sums is not None:
            return self.batch_sums(input, slope, m)
        rows = self.rows(input, slope)
        return rows.view(-1, m, rows.shape[1]).sum(1)


# What a function is applied to, and its parameters with their rules.
InputAndRules = tuple[Tensor, list[tuple[Tensor | None, RowRule]]]


def sum_of_channels(_input: Tensor, slope: Tensor) -> Tensor:
    """Return the slopes summed over positions, channels first: n o."""
    return slope if slope.ndim == 2 else slope.flatten(2).sum(2)
