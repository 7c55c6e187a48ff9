"""Which units of a comparison are run, and when."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from flatmin.comparison._checkpoints import ComparisonFolder, UnitFolder
from flatmin.comparison._cluster import work
from flatmin.comparison._plan import Plan
from flatmin.comparison._tasks import Outcome, Start, StartTask, UnitTask
from flatmin.comparison._unit import (
    kept_unit,
    lost_start,
    lost_unit,
    run_start,
    run_unit,
)

__all__ = ["run_units"]

# Seconds between two looks at what other calls are at: more and more, since many jobs
# may look at one file server.
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_GIVE_UP = 600.0  # seconds after which a server has let go of what a dead machine held


def run_units(
    estimators: Mapping[str, Any],
    seeds: list[int],
    plan: Plan,
    *,
    memory: Any,
    folders: ComparisonFolder,
    n_jobs: int | None,
    bar: Any,
) -> Iterator[Outcome]:
    """Yield units and their provenance: first those that an earlier call has kept.

    Parameters
    ----------
    estimators : mapping of str to estimator
        By the labels of the methods.
    seeds : list of int
    plan : Plan
    memory : None, str or joblib.Memory
        Of the warm-ups.
    folders : ComparisonFolder
    n_jobs : int or None
    bar : progress bar
        Moves by one for each warm-up and each unit.

    Yields
    ------
    tuple of Unit and dict

    Raises
    ------
    OSError
        If all that is left is held by machines that give no sign of life.
    """
    kept, left = [], []
    for seed, label in product(seeds, estimators):
        found = kept_unit(plan, folders.unit(label, seed))
        if found is None:
            left.append((label, seed))
        else:
            kept.append(found)
    if left:
        folders.check()
    for found in kept:
        bar.update()
        yield found
    starts: dict[int, Start] = {}
    waiting = list(dict.fromkeys(seed for _, seed in left))
    bar.update(len(seeds) - len(waiting))
    pause = _PAUSE
    # Units that another call is computing come last. They are taken from the folder
    # when they are done, or run here if that call has ended without them.
    while left:
        warmups = [
            StartTask(seed, plan, memory, folders.warmup(seed))
            for seed in waiting
            if not folders.warmup(seed).in_use()
        ]
        for start in work(run_start, warmups, n_jobs, lost_start, common="plan"):
            if start is not None:
                starts[start.seed] = start
                waiting.remove(start.seed)
                bar.update()
        units = [
            UnitTask(
                label, estimators[label], starts[seed], plan, folders.unit(label, seed)
            )
            for label, seed in left
            if seed in starts and not folders.unit(label, seed).in_use()
        ]
        ended = False
        for outcome in work(run_unit, units, n_jobs, lost_unit, common="plan"):
            if outcome is not None:
                ended = True
                left.remove((outcome[0].record["method"], outcome[0].record["seed"]))
                bar.update()
                yield outcome
        bar.set_postfix_str(f"{len(left)} in another call" if left else "")
        if left and not ended:
            _check_holders(
                folders.warmup(seed) if seed in waiting else folders.unit(label, seed)
                for label, seed in left
            )
            time.sleep(pause)
        pause = _PAUSE if ended else min(2 * pause, _LONGEST_PAUSE)


def _check_holders(folders: Iterable[UnitFolder]) -> None:
    """Raise if machines that are gone hold all of these folders."""
    held = [(folder.path, folder.silent_holder(_GIVE_UP)) for folder in folders]
    if all(holder is not None for _, holder in held):
        path, holder = held[0]
        raise OSError(
            f"{len(held)} units are left, whose folders are locked by machines without "
            f"a sign of life for {_GIVE_UP / 60:.0f} minutes: {path} by {holder}. If "
            "that machine is gone, its file server has kept the lock: delete the file "
            ".lock in that folder and call again. What has ended is kept."
        )
