"""From runs with several seeds to one curve with a band."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from flatmin._utils.names import check_known

__all__ = ["SPREADS", "band", "check_band"]

# What a band shows, as legends say it.
SPREADS = {"range": "range", "sd": "1 SD", "ci": "95 % interval"}

_PHASES = {"warmup": 0, "noise": 1, "quench": 2}


def check_band(spread: str) -> None:
    """Raise if a band cannot show that.

    Parameters
    ----------
    spread : str
    """
    check_known("spread", spread, SPREADS)


def band(runs: pd.DataFrame, column: str, spread: str) -> pd.DataFrame:
    """Return the mean over seeds and the band around it, by iteration.

    A curve ends where the first seed ends: a mean over those left would be of other
    runs than before.

    Parameters
    ----------
    runs : DataFrame
        With columns iteration, ``column`` and, where there are several, seed and
        phase.
    column : str
    spread : {"range", "sd", "ci"}
        All seeds; one standard deviation, ddof 1; the 95 % t interval of the mean.

    Returns
    -------
    DataFrame
        Columns mean, low and high, indexed by iteration; for one seed all the same. A
        phase may begin at the iteration that the one before ends with.

    Raises
    ------
    ValueError
        If a seed has two values at one iteration, or the seeds share no iteration.

    Examples
    --------
    >>> runs = pd.DataFrame({"iteration": 0, "seed": [0, 1], "loss": [1.0, 3.0]})
    >>> band(runs, "loss", "sd").round(3).to_numpy().tolist()
    [[2.0, 0.586, 3.414]]
    """
    seeds = runs["seed"] if "seed" in runs else pd.Series(0, runs.index)
    phases = runs["phase"].map(_PHASES) if "phase" in runs else 0
    long = pd.DataFrame(
        {
            "phase": phases,
            "iteration": runs["iteration"],
            "seed": seeds,
            "value": runs[column],
        }
    )
    long = long[np.isfinite(long["value"])]
    if long.duplicated(["phase", "iteration", "seed"]).any():
        raise ValueError(
            f"{column!r} must have one value for each seed and iteration. Got several; "
            "give the runs different seeds, or draw them one by one."
        )
    wide = long.pivot(index=["phase", "iteration"], columns="seed", values="value")
    shared = wide.sort_index().dropna().droplevel("phase")
    if len(wide) and not len(shared):
        raise ValueError(
            f"The seeds share no iteration at which {column!r} is known, so there is "
            "no mean over them. Record all runs at the same iterations."
        )
    n, mean = shared.shape[1], shared.mean(axis=1)
    if spread == "range" or n < 2:
        low, high = shared.min(axis=1), shared.max(axis=1)
    else:
        half = shared.std(axis=1)
        if spread == "ci":
            half *= stats.t.ppf(0.975, n - 1) / np.sqrt(n)
        low, high = mean - half, mean + half
    return pd.DataFrame({"mean": mean, "low": low, "high": high})
