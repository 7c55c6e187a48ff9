"""How many steps each unit of a comparison took to a training loss."""

from __future__ import annotations

import numpy as np
import pandas as pd

from flatmin._utils.numbers import is_number
from flatmin.comparison._result import ComparisonResult

__all__ = ["steps_to_loss"]


def steps_to_loss(result: ComparisonResult, loss: float) -> pd.DataFrame:
    """Return the first recorded iteration of the noise with a loss of at most this.

    L(θ) of all examples, as it is recorded every ``record_every`` iterations. The first
    iterate at or below the loss lies after ``above`` and not after ``steps``, unless
    the loss went below and came back between two rows; ``record_every=1`` is exact.
    Warm-up and quenches do not count.

    Parameters
    ----------
    result : ComparisonResult
    loss : float
        The target.

    Returns
    -------
    pandas.DataFrame
        Indexed by method and seed, for every unit: ``steps``, NaN where the loss was
        not reached; ``above``, the last recorded iteration before that, NaN where
        there is none; ``last``, the last recorded iteration, with which a unit that did
        not reach the loss is censored; and ``reached``.

    Raises
    ------
    TypeError
        If it is no result of a comparison.
    ValueError
        If ``loss`` is no finite number.

    References
    ----------
    S. McCandlish et al., "An empirical model of large-batch training", arXiv
    1812.06162, which fits steps to a loss over batch sizes.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import NoisyDiffusionClassifier, compare_dynamics
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = NoisyDiffusionClassifier(lr=0.1, max_iter=40, record_every=10)
    >>> result = compare_dynamics(["gd"], X, y, estimator=clf, n_seeds=[0])
    >>> row = steps_to_loss(result, 0.8).loc[("gd", 0)]
    >>> float(row["above"]), float(row["steps"])
    (0.0, 10.0)
    """
    if not isinstance(result, ComparisonResult):
        raise TypeError(
            "result must be a ComparisonResult, which compare_dynamics returns. Got "
            f"{type(result).__name__}."
        )
    if not is_number(loss):
        raise ValueError(f"loss must be a finite number. Got {loss!r}.")
    noise = result.table[result.table["phase"] == "noise"]
    groups = dict(iter(noise.groupby(["method", "seed"])))
    rows = []
    for unit in result.units.itertuples():
        row = {"method": unit.method, "seed": unit.seed}
        found = groups.get((unit.method, unit.seed), noise.iloc[:0])
        rows.append(row | _first(found.sort_values("iteration"), float(loss)))
    return pd.DataFrame(rows).set_index(["method", "seed"])


def _first(unit: pd.DataFrame, loss: float) -> dict[str, float | bool]:
    iterations = unit["iteration"].to_numpy()
    below = (unit["loss"] <= loss).to_numpy()  # not for NaN
    reached = bool(below.any())
    first = int(below.argmax()) if reached else len(below)
    return {
        "steps": float(iterations[first]) if reached else np.nan,
        "above": float(iterations[first - 1]) if first else np.nan,
        "last": int(iterations[-1]) if len(iterations) else 0,
        "reached": reached,
    }
