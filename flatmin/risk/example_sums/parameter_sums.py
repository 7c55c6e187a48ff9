"""Kernels: sums over the rows of one parameter, without all rows.

Where a row is an outer product, a product of few positions, or sparse, its squares are
known without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin.risk.example_sums.factors import moments_by_outputs, norms_by_positions
from flatmin.risk.example_sums.moments import (
    centred_moments,
    squared_row_norms,
    squared_sums,
)
from flatmin.risk.example_sums.outer_moments import outer_moments
from flatmin.risk.example_sums.parameter_uses import ParameterUse

__all__ = ["COLUMNS", "ParameterSums"]

# Numbers in rows and patches that are held at a time: they stay within the caches of
# a CPU. A GPU wants few large ones (VGG11 on an H100: with the CPU's blocks a sweep
# took as long as 37 gradients).
_AT_A_TIME_CPU = 1 << 19
_AT_A_TIME_GPU = 1 << 26
# How many times as long as in float32 a product takes: on a CPU, on the worst GPU.
_FLOAT64_TIMES = 2
_FLOAT64_TIMES_GPU = 64
# Rows in a block, below which sums go output by output, and the numbers that this may
# hold: patches of a whole chunk.
_FEW = 16
_MOST = 1 << 25
# Numbers of one row that are worked on at a time.
COLUMNS = 1 << 20


@dataclass(frozen=True)
class ParameterSums:
    """The sums of one parameter over the examples of a chunk."""

    parameter: Tensor  # P numbers
    uses: list[ParameterUse]
    n: int

    def squared_norms(self) -> Tensor:
        """Return ‖gᵢ‖² in this parameter, shape (n,), in float64."""
        if self.uses:
            return _squared_norms(self.uses, self.n, self.parameter.numel())
        return self._zeros(torch.float64, self.n)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and centred squares, each of shape (P,), in float64."""
        size = self.parameter.numel()
        if not self.uses:
            zero = self._zeros(torch.float64, size)
            return zero, zero
        mean, squares = _moments(self.uses, self.n, size)
        return _restore(self.uses, mean), _restore(self.uses, squares)

    def batch_sums(self, m: int) -> Tensor:
        """Return the sums of m rows each, in order, shape (n / m, P)."""
        size = self.parameter.numel()
        if not self.uses:
            return self._zeros(self.parameter.dtype, self.n // m, size)
        blocks = torch.cat(list(_blocks(self.uses, self.n, size, m)))
        return _restore(self.uses, blocks)

    def _zeros(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.parameter.device)


def _squared_norms(uses: list[ParameterUse], n: int, size: int) -> Tensor:
    use = uses[0]
    if len(uses) == 1 and use.is_outer:
        return squared_row_norms(use.slope) * squared_row_norms(use.input)
    if len(uses) == 1 and use.rule.nonzero_blocks is not None:
        combined, _ = _combined(*use.rule.nonzero_blocks(use.input, use.slope))
        return combined.square().sum((1, 2))
    # t positions: pairs of them cost t² (i + o), rows t i o.
    n_numbers = sum(use.n_numbers for use in uses)
    if _has_factors(uses) and _float64_times(use.slope) * n_numbers < size:
        step = max(1, _at_a_time(use.slope) // n_numbers)
        parts = (
            [use.factors(start, start + step) for use in uses]
            for start in range(0, n, step)
        )
        return torch.cat([norms_by_positions(part) for part in parts])
    return torch.cat([squared_row_norms(rows) for rows in _blocks(uses, n, size)])


def _moments(uses: list[ParameterUse], n: int, size: int) -> tuple[Tensor, Tensor]:
    use = uses[0]
    if len(uses) == 1 and use.is_outer:
        return outer_moments(use.slope, use.input, _at_a_time(use.slope) // 4)
    if len(uses) == 1 and use.rule.nonzero_blocks is not None:
        return _moments_of_tokens(*use.rule.nonzero_blocks(use.input, use.slope), size)
    at_a_time = _at_a_time(use.slope)
    # Where few rows make a block, the sums of length D take longer than the rows.
    few = _FEW * size > at_a_time and n * use.n_numbers < _MOST
    if few and len(uses) == 1 and _has_factors(uses):
        return moments_by_outputs(use.factors(0, n), at_a_time)
    # What is left of the first block's mean has the digits that the rows have.
    sums = torch.zeros(size, dtype=torch.float64, device=use.slope.device)
    squares = torch.zeros_like(sums)
    centre: Tensor | None = None
    for rows in _blocks(uses, n, size):
        centre = rows.mean(0) if centre is None else centre
        _add_beside(centre, rows, sums, squares)
    mean, squares = centred_moments(sums, squares, n)
    return mean if centre is None else mean.add_(centre), squares


def _moments_of_tokens(
    tokens: Tensor, slopes: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Return mean and centred squares of rows that are zero but at their tokens."""
    combined, is_first = _combined(tokens, slopes)
    n, _, width = combined.shape
    at, rows = tokens.flatten(), combined.flatten(0, 1)
    there = is_first.to(rows.dtype).flatten().unsqueeze(1)
    mean = rows.new_zeros(size // width, width).index_add_(0, at, rows / n)
    rest = (rows - mean[at]) * there
    squares = torch.zeros_like(mean).index_add_(0, at, rest.square_())
    # Where a token is not, the rest is the mean.
    missing = n - mean.new_zeros(len(mean), 1).index_add_(0, at, there)
    squares.addcmul_(mean.square(), missing)
    return mean.flatten(), squares.flatten()


def _add_beside(centre: Tensor, rows: Tensor, sums: Tensor, squares: Tensor) -> None:
    """Add sums and squares of what rows have beside a centre."""
    # By columns: of a large embedding no second row is held.
    columns = (of.split(COLUMNS, -1) for of in (centre, rows, sums, squares))
    for its_centre, some, its_sums, its_squares in zip(*columns, strict=True):
        rest = some - its_centre
        its_sums += rest.sum(0)
        its_squares += squared_sums(rest)


def _has_factors(uses: list[ParameterUse]) -> bool:
    """Whether all uses of a parameter have factors, in the same order."""
    orders = {use.rule.order for use in uses}
    return len(orders) == 1 and all(use.rule.factors is not None for use in uses)


def _float64_times(tensor: Tensor) -> int:
    return _FLOAT64_TIMES if tensor.device.type == "cpu" else _FLOAT64_TIMES_GPU


def _at_a_time(tensor: Tensor) -> int:
    return _AT_A_TIME_CPU if tensor.device.type == "cpu" else _AT_A_TIME_GPU


def _blocks(
    uses: list[ParameterUse], n: int, size: int, m: int = 1
) -> Iterator[Tensor]:
    """Yield sums of m rows each, a block at a time; uses add up before any square."""
    step = m * max(1, _at_a_time(uses[0].slope) // (m * _largest(uses, size)))
    for start in range(0, n, step):
        yield _total(uses, [use.part(start, start + step, m) for use in uses])


def _largest(uses: list[ParameterUse], size: int) -> int:
    """Return how many numbers the rows of one example, and the way to them, take."""
    return size + max(use.n_numbers for use in uses)


def _total(uses: list[ParameterUse], parts: list[Tensor]) -> Tensor:
    """Return the sum of the uses' rows, whose orders can differ."""
    if len(uses) == 1:
        return parts[0]
    total = uses[0].rule.restore(parts[0])
    for use, part in zip(uses[1:], parts[1:], strict=True):
        total = total + use.rule.restore(part)
    return total


def _restore(uses: list[ParameterUse], sums: Tensor) -> Tensor:
    """Return sums over examples in the parameter's order."""
    return uses[0].rule.restore(sums) if len(uses) == 1 else sums


def _combined(tokens: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Return, at the first place of each token, its gradient from all places.

    Parameters
    ----------
    tokens : Tensor of shape (n, t)
    slopes : Tensor of shape (n, t, o)

    Returns
    -------
    combined : Tensor of shape (n, t, o)
        In float64; zero where the token has come before.
    is_first : Tensor of shape (n, t)
        Where it has not.
    """
    same = tokens.unsqueeze(2) == tokens.unsqueeze(1)  # n t s
    is_first = ~same.tril(-1).any(2)
    combined = same.double() @ slopes.double()
    return combined * is_first.unsqueeze(-1), is_first
