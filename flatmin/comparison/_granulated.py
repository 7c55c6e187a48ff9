"""Whether a measure orders models as their errors do, one factor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flatmin._utils.messages import naming, shown
from flatmin._utils.numbers import check_between, check_count
from flatmin._utils.random_state import resolve_random_state
from flatmin._utils.results import HtmlTable, ShortRepr

__all__ = ["GranulatedTau", "granulated_tau"]


@dataclass(frozen=True, repr=False)
class GranulatedTau(HtmlTable, ShortRepr):
    """The mean of Kendall's τ over factors; ``float`` gives it.

    Examples
    --------
    >>> import pandas as pd
    >>> from flatmin.comparison import granulated_tau
    >>> rows = [(lr, seed, lr + seed, 2.0 * lr) for lr in (1, 2, 3) for seed in (0, 1)]
    >>> table = pd.DataFrame(rows, columns=["lr", "seed", "flat", "gap"])
    >>> float(granulated_tau(table, "flat", "gap", factors=["lr"]))
    1.0
    """

    value: float
    low: float  # ends of the bootstrap interval over seeds
    high: float
    by_factor: pd.DataFrame  # τ, its interval, smallest stratum, strata and pairs
    n_seeds: int

    def __float__(self) -> float:
        return self.value

    def to_frame(self) -> pd.DataFrame:
        """Return one row a factor.

        Returns
        -------
        pandas.DataFrame
            Indexed by factor: tau, low, high, lowest (the smallest τ of a stratum),
            n_strata and n_pairs.
        """
        return self.by_factor.copy()


def granulated_tau(
    table: pd.DataFrame,
    measure: str,
    error: str,
    *,
    factors: Sequence[str],
    seed: str = "seed",
    n_resamples: int = 1000,
    confidence: float = 0.95,
    random_state: int | np.random.RandomState | None = 0,
) -> GranulatedTau:
    """Return Kendall's τ of a measure and an error while one factor varies at a time.

    A correlation over all models at once may be that of a third number, such as the
    learning rate, with both. So a *stratum* holds the models that agree in all factors
    but one, and in the seed. Its τ is the mean over pairs of sign(Δmeasure)
    sign(Δerror), in which a tie counts 0; that of a factor is the mean over its strata,
    and the result is the mean over factors. 1 is a measure that is large where the
    error is. The seed is held, and varies only where ``factors`` names it as well.

    The interval is that of percentiles over resamples of seeds, with replacement: all
    models of a seed stay together, since they share data and initialisation. Of few
    seeds it is somewhat too narrow.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a model, one model for each combination of factors and seed; not all
        combinations need be there.
    measure, error : str
        Columns of numbers.
    factors : sequence of str
        Columns whose values were chosen, such as "lr" and "batch_size".
    seed : str, default="seed"
        The column of the seed.
    n_resamples : int, default=1000
        Of the bootstrap.
    confidence : float, default=0.95
        Of the intervals.
    random_state : int, RandomState or None, default=0
        For the resamples.

    Returns
    -------
    GranulatedTau

    Raises
    ------
    TypeError
        If ``table`` is no data frame.
    ValueError
        If a column is missing or not finite, a factor is named twice, two rows are of
        one combination, there are less than two seeds, or a factor varies in no
        stratum.

    References
    ----------
    Y. Jiang et al., "Fantastic generalization measures and where to find them", ICLR
    2020, arXiv 1912.02178; G. Dziugaite et al., arXiv 2010.11924, for the strata one by
    one.

    Examples
    --------
    The measure follows the error over lr and is against it over width: (1 - 1)/2.

    >>> table = pd.DataFrame(
    ...     [
    ...         {"lr": lr, "width": w, "seed": s, "flat": lr + 10 * w, "gap": lr - w}
    ...         for lr in (1, 2, 3) for w in (1, 2) for s in (0, 1)
    ...     ]
    ... )
    >>> found = granulated_tau(table, "flat", "gap", factors=["lr", "width"])
    >>> found.value, found.by_factor["tau"].to_dict()
    (0.0, {'lr': 1.0, 'width': -1.0})
    """
    n_resamples = check_count("n_resamples", n_resamples)
    confidence = check_between("confidence", confidence, 0, 1)
    with naming("factors"):
        factors = [factors] if isinstance(factors, str) else list(factors)
    for name, column in {"measure": measure, "error": error, "seed": seed}.items():
        _check_column(table, name, column)
    for factor in factors:
        _check_column(table, "factors", factor)
    table = _checked(table, [measure, error], factors, seed)
    seeds, place = np.unique(table[seed].to_numpy(), return_inverse=True)
    if len(seeds) < 2:
        raise ValueError(
            f"granulated_tau needs two seeds or more to resample. Got {len(seeds)} in "
            f"the column {seed!r}."
        )
    rng = resolve_random_state(random_state)
    counts = rng.multinomial(len(seeds), np.ones(len(seeds)) / len(seeds), n_resamples)
    weights = np.concatenate([np.ones((1, len(seeds))), counts])
    table = table.assign(_place=place)
    numbers = (measure, error)
    rows, drawn = {}, []
    for factor in factors:
        others = [name for name in dict.fromkeys([*factors, seed]) if name != factor]
        agree = _agreements(table, numbers, factor, others)
        by_seed = _over_seeds if factor == seed else _within_seeds
        taus = by_seed(agree, weights)
        drawn.append(taus)
        rows[factor] = {
            "tau": taus[0],
            **_interval(taus[1:], confidence),
            "lowest": agree.groupby("stratum")["agrees"].mean().min(),
            "n_strata": agree["stratum"].nunique(),
            "n_pairs": len(agree),
        }
    mean = np.mean(drawn, axis=0)
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("factor")
    ends = _interval(mean[1:], confidence)
    return GranulatedTau(
        float(mean[0]), ends["low"], ends["high"], frame, n_seeds=len(seeds)
    )


def _check_column(table: Any, name: str, column: Any) -> None:
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a DataFrame. Got {type(table).__name__}.")
    if not isinstance(column, str) or column not in table:
        raise ValueError(
            f"{name} must be of the table's columns. Got {shown(column)}; there are "
            f"{', '.join(map(repr, table.columns))}."
        )


def _checked(
    table: pd.DataFrame, numbers: list[str], factors: list[str], seed: str
) -> pd.DataFrame:
    if not factors:
        raise ValueError("factors must name a column or more. Got none.")
    twice = next((name for name in factors if factors.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"Every factor counts once in the mean over factors. Got {twice!r} "
            f"{factors.count(twice)} times; leave the others out."
        )
    values = table[numbers].to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(
            f"The columns {numbers[0]!r} and {numbers[1]!r} must be finite. Got "
            f"{int((~np.isfinite(values)).any(1).sum())} rows that are not: leave them "
            "out, and say how many."
        )
    if table[seed].isna().any():
        raise ValueError(
            f"The column {seed!r} must name the seed of each row. Got "
            f"{int(table[seed].isna().sum())} rows without one."
        )
    cells = list(dict.fromkeys([*factors, seed]))
    twice = table.duplicated(cells)
    if twice.any():
        raise ValueError(
            "table must have one row for each combination of factors and seed. Got "
            f"{int(twice.sum())} more; name all factors, or take means first."
        )
    return table


def _agreements(
    table: pd.DataFrame, numbers: tuple[str, str], factor: str, others: list[str]
) -> pd.DataFrame:
    """Return a row a pair: its stratum, its seeds, and ±1 or 0."""
    parts = []
    strata = table.groupby(others, sort=True, dropna=False)
    for stratum, (_, rows) in enumerate(strata):
        first, second = np.triu_indices(len(rows), 1)
        measure, error = (rows[name].to_numpy(dtype=float) for name in numbers)
        agrees = np.sign(measure[first] - measure[second])
        agrees = agrees * np.sign(error[first] - error[second])
        place = rows["_place"].to_numpy()
        found = {"stratum": stratum, "a": place[first], "b": place[second]}
        parts.append(pd.DataFrame({**found, "agrees": agrees}))
    pairs = pd.concat(parts, ignore_index=True)
    if pairs.empty:
        raise ValueError(
            f"The factor {factor!r} must vary where all others, and the seed, are "
            "equal. Got no two rows of that kind; leave it out of factors."
        )
    return pairs


def _within_seeds(pairs: pd.DataFrame, weights: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over strata, each of one seed, for every resample of seeds."""
    strata = pairs.groupby("stratum").agg({"agrees": "mean", "a": "first"})
    chosen = weights[:, strata["a"].to_numpy()]
    total = chosen.sum(1)
    tau = chosen @ strata["agrees"].to_numpy()
    return np.divide(tau, total, out=np.full(len(total), np.nan), where=total > 0)


def _over_seeds(pairs: pd.DataFrame, weights: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over strata whose pairs are of two seeds."""
    both = weights[:, pairs["a"].to_numpy()] * weights[:, pairs["b"].to_numpy()]
    which = pairs["stratum"].to_numpy()
    edges = np.flatnonzero(np.diff(which, prepend=-1))  # strata follow each other
    above = np.add.reduceat(both * pairs["agrees"].to_numpy(), edges, axis=1)
    below = np.add.reduceat(both, edges, axis=1)
    taus = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    counted = np.isfinite(taus).sum(1)
    total = np.nansum(taus, axis=1)
    return np.divide(total, counted, out=np.full(len(total), np.nan), where=counted > 0)


def _interval(taus: NDArray[Any], confidence: float) -> dict[str, float]:
    known = taus[np.isfinite(taus)]
    if not len(known):
        return {"low": np.nan, "high": np.nan}
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"low": float(low), "high": float(high)}
