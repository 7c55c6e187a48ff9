"""Several comparisons of one protocol as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from flatmin.comparison._result import ComparisonResult

__all__ = ["merge_comparisons"]


def merge_comparisons(results: Sequence[ComparisonResult]) -> ComparisonResult:
    """Put comparisons of one protocol together: other methods, other seeds.

    Parameters
    ----------
    results : sequence of ComparisonResult

    Returns
    -------
    ComparisonResult
        Methods and seeds in order of their first appearance.

    Raises
    ------
    ValueError
        If there are none, their protocols differ, or a unit is in two of them.
    """
    if not results:
        raise ValueError("merge_comparisons needs at least one result. Got none.")
    methods: dict[str, Any] = {}
    end_points: dict[tuple[str, int, str], np.ndarray | None] = {}
    machines: list[dict[str, Any]] = []
    common = {**results[0].protocol, "methods": None}
    for result in results:
        own = result.protocol["methods"]
        if {**result.protocol, "methods": None} != common or any(
            methods.get(label, settings) != settings for label, settings in own.items()
        ):
            raise ValueError(
                "Results can be merged if their protocols differ in methods and seeds "
                f"alone. Got {common} and {result.protocol}."
            )
        methods |= own
        end_points |= result.end_points
        machines += [found for found in result.provenance if found not in machines]
    units = pd.concat([result.units for result in results], ignore_index=True)
    twice = units[units.duplicated(["method", "seed"])]
    if len(twice):
        method, seed = twice.iloc[0][["method", "seed"]]
        raise ValueError(
            f"Every unit may be there once. Got {method!r} with seed {seed} twice."
        )
    return ComparisonResult(
        pd.concat([result.table for result in results], ignore_index=True),
        units,
        {**common, "methods": methods},
        machines,
        end_points,
        # Other data of another result are told by the losses.
        next((result.source for result in results if result.source is not None), None),
    )
