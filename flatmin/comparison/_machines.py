"""Which kinds of machine the units of a seed were run on: pairs want one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["describe_mixture"]


def describe_mixture(units: Iterable[tuple[int, Mapping[str, Any]]]) -> str | None:
    """Say which seed was run on machines of several kinds.

    Differences of methods are paired by seed. Sums on another processor or device
    differ in their last bits, and a run makes much of that: then a difference is one of
    machines too.

    Parameters
    ----------
    units : iterable of (seed, provenance)

    Returns
    -------
    str or None
        None if there is none.
    """
    kinds: dict[int, set[str]] = {}
    for seed, provenance in units:
        machine = provenance.get("machine")
        if machine is None:  # of a unit that was lost on a cluster
            continue
        names = ("platform", "processor", "device")
        kind = ", ".join(str(machine.get(name, "unknown")) for name in names)
        kinds.setdefault(seed, set()).add(kind)
    mixed = {seed: found for seed, found in kinds.items() if len(found) > 1}
    if not mixed:
        return None
    seed = min(mixed)
    more = f", and so were {len(mixed) - 1} others" if len(mixed) > 1 else ""
    return f"Seed {seed} was run on {' and on '.join(sorted(mixed[seed]))}{more}"
