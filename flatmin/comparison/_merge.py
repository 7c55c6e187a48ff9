"""Several comparisons of one protocol as one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from flatmin._utils.messages import naming
from flatmin.comparison._machines import describe_mixture
from flatmin.comparison._measure import TOLERANCES
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

    Warns
    -----
    UserWarning
        If the units of a seed were run on several kinds of machine: their differences
        are paired no longer.

    Raises
    ------
    TypeError
        If one is something else.
    ValueError
        If there are none, their protocols or data differ, or a unit is in two of them.
        Networks, losses and other settings count by their content, data and metrics
        that are functions by name; of a seed that is in two results the first losses
        tell other data.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import NoisyDiffusionClassifier, compare_dynamics
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = NoisyDiffusionClassifier(max_iter=20)
    >>> from flatmin.comparison import merge_comparisons
    >>> from functools import partial
    >>> run = partial(compare_dynamics, ["gd"], X, y, estimator=clf, random_state=0)
    >>> parts = [run(n_seeds=[i]) for i in (0, 1)]
    >>> merge_comparisons(parts).units["seed"].tolist()
    [0, 1]
    """
    with naming("results"):
        results = list(results) if isinstance(results, Iterable) else [results]
    if not all(isinstance(result, ComparisonResult) for result in results):
        kinds = sorted({type(result).__name__ for result in results})
        raise TypeError(f"results must be ComparisonResults. Got {', '.join(kinds)}.")
    if not results:
        raise ValueError("results must hold at least one ComparisonResult. Got none.")
    methods: dict[str, Any] = {}
    end_points: dict[tuple[str, int, str], np.ndarray | None] = {}
    machines: list[dict[str, Any]] = []
    common: dict[str, Any] = {}
    hashes: dict[str, dict[str, str]] = {"": {}}
    for result in results:
        shared = {**result.protocol, "methods": None}
        shared.pop("hashes", None)
        own = result.protocol["methods"]
        common = common or shared
        # Results of earlier versions have no hash of their data.
        unknown = "data_hash" not in shared or "data_hash" not in common
        left = {"data_hash": None} if unknown else {}
        if (common | left) != (shared | left) or any(
            methods.get(label, settings) != settings for label, settings in own.items()
        ):
            raise ValueError(
                "Results can be merged if their protocols differ in methods and seeds "
                f"alone. Got {common} and {result.protocol}."
            )
        common = shared | common
        methods |= own
        _add_hashes(hashes, result.protocol)
        end_points |= result.end_points
        machines += [found for found in result.provenance if found not in machines]
    units = pd.concat([result.units for result in results], ignore_index=True)
    twice = units[units.duplicated(["method", "seed"])]
    if len(twice):
        method, seed = twice.iloc[0][["method", "seed"]]
        raise ValueError(
            f"Every unit may be there once. Got {method!r} with seed {seed} twice."
        )
    table = pd.concat([result.table for result in results], ignore_index=True)
    _check_starts(table)
    # A result that has several machines does not tell which unit was run where.
    mixed = describe_mixture(
        (seed, result.provenance[0])
        for result in results
        if len(result.provenance) == 1
        for seed in result.seeds
    )
    if mixed is not None:
        warnings.warn(f"{mixed}: its methods are not paired.", stacklevel=2)
    protocol = {**common, "methods": methods}
    if any("hashes" in result.protocol for result in results):
        protocol["hashes"] = {"estimator": hashes.pop(""), "methods": hashes}
    return ComparisonResult(
        table,
        units,
        protocol,
        machines,
        end_points,
        # Other data of another result are told by the losses.
        next((result.source for result in results if result.source is not None), None),
    )


def _add_hashes(known: dict[str, dict[str, str]], protocol: dict[str, Any]) -> None:
    """Add what a result tells of its settings' contents; earlier versions tell nothing.

    Raises
    ------
    ValueError
        If a setting has another content in an earlier result.
    """
    told = protocol.get("hashes", {"estimator": {}, "methods": {}})
    for label, hashes in {"": told["estimator"], **told["methods"]}.items():
        before = known.setdefault(label, {})
        other = [name for name, own in hashes.items() if before.get(name, own) != own]
        if other:
            raise ValueError(
                "Results can be merged if their protocols differ in methods and seeds "
                f"alone. Got {', '.join(other)} with another content under one "
                "description, as of a function, an array, a loss or a network that was "
                "changed; run all with one, or give the methods different labels."
            )
        before.update(hashes)


def _check_starts(table: pd.DataFrame) -> None:
    """Raise unless the units of a seed begin with one loss."""
    relative, absolute = TOLERANCES[torch.float32]  # on two devices
    first = table.groupby(["seed", "method"], sort=False)["loss"].first()
    for seed, losses in first.groupby(level="seed"):
        low, high = losses.min(), losses.max()
        if high - low > relative * abs(high) + absolute:
            raise ValueError(
                "Results of one seed can be merged if they have the same data, network "
                f"and start. Got first losses from {low:.6g} to {high:.6g} with seed "
                f"{seed}."
            )
