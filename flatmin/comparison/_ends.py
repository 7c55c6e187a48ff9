"""Where the phases of units end, and which units have no such end."""

from __future__ import annotations

import pandas as pd

__all__ = ["PHASES", "end_rows", "failed_units", "is_after", "left_out"]

# In the order in which a unit comes to their ends.
PHASES = ("start", "noise", "quench", "quench_loss")


def end_rows(table: pd.DataFrame, units: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the ends, with the index that they have in the table.

    Parameters
    ----------
    table, units : pandas.DataFrame
        Of a comparison.

    Returns
    -------
    pandas.DataFrame
        The phase of the rows where the noise begins is "start".
    """
    rows = table[table["phase"] != "warmup"]
    start = rows[(rows["phase"] == "noise") & (rows["iteration"] == 0)]
    last = rows.groupby(["phase", "method", "seed"], sort=False).tail(1)
    short = [failed_units(units)[["phase", "method", "seed"]]]
    short.append(left_out(units).assign(phase="quench_loss")[list(short[0])])
    none = pd.MultiIndex.from_frame(pd.concat(short))
    keys = pd.MultiIndex.from_frame(last[["phase", "method", "seed"]])
    return pd.concat([start.assign(phase="start"), last[~keys.isin(none)]])


def failed_units(units: pd.DataFrame) -> pd.DataFrame:
    """Return the units that did not come to their end.

    Parameters
    ----------
    units : pandas.DataFrame

    Returns
    -------
    pandas.DataFrame
    """
    return units[units["status"] != "done"]


def left_out(units: pd.DataFrame) -> pd.DataFrame:
    """Return the units that did not go down to the loss of a quench.

    Parameters
    ----------
    units : pandas.DataFrame

    Returns
    -------
    pandas.DataFrame
    """
    if "quench_loss" not in units:
        return units.iloc[:0]
    return units[units["quench_loss"].isin(["not reached", "below before"])]


def is_after(phase: str, failed: str) -> bool:
    """Say whether a unit that failed in one phase has no end of another.

    Parameters
    ----------
    phase : str
        Whose end is asked for.
    failed : str
        Where the unit failed.

    Returns
    -------
    bool
    """
    # A warm-up that failed has no end where the noise would have begun.
    order = ("warmup", *PHASES)
    return order.index(phase) >= order.index(failed)
