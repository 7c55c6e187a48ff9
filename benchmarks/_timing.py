"""Times of a call in units of another call, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["UNTIMED", "Times", "measure", "seconds"]

UNTIMED = 2  # calls before each block: caches and the allocator settle
SHORTEST = 0.05  # seconds that a block should last, against the clock's jitter


@dataclass(frozen=True)
class Times:
    """A call's time in units b over the blocks of one process."""

    ratios: list[float]
    units: list[float]  # seconds

    def summary(self) -> dict[str, Any]:
        low, median, high = _quartiles(self.ratios)
        return {
            "median": median,
            "quartiles": [low, high],
            "blocks": len(self.ratios),
            "b_ms": 1e3 * statistics.median(self.units),
        }


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Return the mean time of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(
    unit: Callable[[], object],
    call: Callable[[], object],
    less: Callable[[], object] | None = None,
    *,
    prime: Callable[[], object],
    steps: int = 1,
    blocks: int = 5,
    budget: float = 60.0,
) -> Times:
    """Time a call and the unit in turn.

    ``less`` is timed beside the call and subtracted: a preparation that cannot be
    called alone is (preparation and use) less use. ``steps`` is what one call counts
    as, and ``prime`` does untimed what only a first call does. There are fewer blocks
    where ``budget`` seconds do not last for all, never fewer than one; a call that
    alone takes longer is made once, between two measurements of the unit.
    """
    unit_repeats = max(2, round(SHORTEST / seconds(unit)))
    prime()
    if less is not None:
        less()
    b = seconds(unit, unit_repeats)
    first = seconds(call)
    if first > budget and less is None:
        b = (b + seconds(unit, unit_repeats)) / 2
        return Times([first / steps / b], [b])
    if first * (1 + UNTIMED) * blocks > budget:
        blocks, untimed, repeats = max(1, min(blocks, int(budget / first))), 0, 1
    else:
        untimed, repeats = UNTIMED, max(1, round(SHORTEST / first))
    ratios, units = [], []
    for _ in range(blocks):
        _calls(unit, UNTIMED)
        b = seconds(unit, unit_repeats)
        _calls(call, untimed)
        time_taken = seconds(call, repeats)
        if less is not None:
            _calls(less, untimed)
            time_taken -= seconds(less, repeats)
        ratios.append(time_taken / steps / b)
        units.append(b)
    return Times(ratios, units)


def _calls(call: Callable[[], object], repeats: int) -> None:
    for _ in range(repeats):
        call()


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high
