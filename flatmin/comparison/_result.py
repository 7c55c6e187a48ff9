"""The outcome of a comparison: what it holds, and what can be asked of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flatmin._utils.messages import naming
from flatmin._utils.names import check_known
from flatmin._utils.numbers import is_count
from flatmin._utils.paths import check_path
from flatmin.comparison._ends import PHASES, end_rows, failed_units, is_after
from flatmin.comparison._files import read_comparison, write_comparison
from flatmin.comparison._inputs import check_backend
from flatmin.comparison._measure import measure_ends, resolve_source
from flatmin.comparison._plan import RiskSource, read_metrics
from flatmin.comparison._summary import summarize

__all__ = ["ComparisonResult"]


@dataclass(frozen=True)
class ComparisonResult:
    """What :func:`compare_dynamics` found.

    Attributes
    ----------
    table : pandas.DataFrame
        A row for every recorded point of every unit, a unit being a method with a seed:
        method, seed, iteration, phase ("warmup", "noise", "quench" or "quench_loss"),
        the columns of the estimator's ``history_``, the metrics, the distance ‖θ - θ₀‖
        from where the noise was switched on, and the end metrics in the rows where a
        phase begins or ends. Iterations count from that switch, so those of the warm-up
        are negative; its rows are repeated for every method. Both quenches begin where
        the noise ended; of that to a loss there is the row where it stopped.
    units : pandas.DataFrame
        A row for every unit: method, seed, status ("done" or "failed"), the phase that
        it got to, error and message, and the seconds it took; with a ``quench_loss``
        what came of that: "reached", "not reached" within its iterations, "below
        before" where the noise ended at no more than that loss, or "failed".
    protocol : dict
        Settings of the estimator, of each method, and of the comparison.
    provenance : list of dict
        Revision, command, versions and machine; several, if the units are of several
        calls. Files of earlier versions may lack the first two.
    end_points : dict of (method, seed, phase) to ndarray of shape (D,)
        What ``keep_params`` has kept, see :meth:`params`; None where the file that
        holds it was not there.
    source : object
        Data and estimator, in the process that has run the comparison.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import NoisyDiffusionClassifier, compare_dynamics
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = NoisyDiffusionClassifier(max_iter=20)
    >>> settings = {"estimator": clf, "n_seeds": 2, "random_state": 0}
    >>> found = compare_dynamics(["gd", "sgd"], X, y, **settings)
    >>> found.units["method"].tolist()
    ['gd', 'gd', 'sgd', 'sgd']
    """

    table: pd.DataFrame
    units: pd.DataFrame
    protocol: dict[str, Any]
    provenance: list[dict[str, Any]]
    end_points: Mapping[tuple[str, int, str], np.ndarray | None] = field(
        default_factory=dict, repr=False
    )
    source: RiskSource | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"source": None}  # the data stay behind

    @property
    def methods(self) -> list[str]:
        """Labels, in the order of the call."""
        return list(self.protocol["methods"])

    @property
    def seeds(self) -> list[int]:
        """Seeds, in the order of the call."""
        return [int(seed) for seed in self.units["seed"].unique()]

    @property
    def failures(self) -> pd.DataFrame:
        """The units that did not come to their end."""
        return failed_units(self.units)

    def ends(self) -> pd.DataFrame:
        """Return where each phase of each unit ended.

        Returns
        -------
        pandas.DataFrame
            Indexed by phase ("start", "noise", "quench", "quench_loss"), method and
            seed. "start" is where the noise was switched on. A phase that a failure cut
            short has none, and a quench to a loss has one if it reached it: there, and
            nowhere else, all units have one loss.
        """
        rows = end_rows(self.table, self.units)
        return rows.set_index(["phase", "method", "seed"]).sort_index()

    def params(self, method: str, seed: int, phase: str) -> np.ndarray:
        """Return θ where a phase of a unit ended.

        Parameters
        ----------
        method : str
            A label.
        seed : int
        phase : {"start", "noise", "quench", "quench_loss"}
            "start" is where the noise was switched on, the same for all methods.

        Returns
        -------
        ndarray of shape (D,)
            A copy, of the estimator's ``dtype``.

        Raises
        ------
        ValueError
            If there is no such unit or phase, the unit did not come to its end, or its
            parameters were not kept.
        """
        check_known("method", method, self.methods)
        check_known("phase", phase, self._phases())
        if not is_count(seed, 0):
            raise ValueError(f"seed must be an integer of at least 0. Got {seed!r}.")
        unit = self.units.query("method == @method and seed == @seed")
        if unit.empty:
            raise ValueError(
                f"There is no unit of {method!r} with seed {seed!r}. The seeds are "
                f"{', '.join(map(str, self.seeds))}."
            )
        theta = self.end_points.get((method, int(seed), phase))
        if theta is not None:
            return theta.copy()
        asked = f"{method!r} with seed {seed} at the end of {phase!r}"
        (record,) = unit.to_dict("records")
        if record["status"] != "done" and is_after(phase, record["phase"]):
            raise ValueError(
                f"There are no parameters of {asked}: the unit failed in "
                f"{record['phase']!r} with {record['error']}: {record['message']}"
            )
        outcome = record.get("quench_loss")
        if phase == "quench_loss" and outcome != "reached":
            raise ValueError(
                f"There are no parameters of {asked}: the outcome of its quench to a "
                f"loss of {self.protocol['quench_loss']} is {outcome!r}, so its loss "
                "is not that of the others."
            )
        if (method, int(seed), phase) in self.end_points:
            raise ValueError(
                f"The parameters of {asked} are in a file that was not there when the "
                "result was read. Put it, NAME.params.npz, beside NAME.json, and read "
                "again."
            )
        raise ValueError(
            f"The parameters of {asked} were not kept. Pass keep_params=True to "
            "compare_dynamics."
        )

    def _phases(self) -> list[str]:
        """Return the phases that a unit may come to the end of."""
        asked = {"start": True, "noise": True}
        asked["quench"] = bool(self.protocol["quench"])
        asked["quench_loss"] = "quench_loss" in self.protocol
        return [phase for phase in PHASES if asked[phase]]

    def measure(
        self,
        measures: Mapping[str, Callable[..., Any]],
        X: Any = None,
        y: Any = None,
        *,
        estimator: Any = None,
        phases: str | Iterable[str] | None = None,
        n_jobs: int | None = None,
    ) -> pd.DataFrame:
        """Measure something else where the phases ended, without running again.

        What comes out is what the same ``end_metrics`` would have given.

        Parameters
        ----------
        measures : dict of str to callable
            ``measure(risk, theta)`` returns a number. One with a ``stderr`` gets a
            column for that too.
        X : array-like, data set or callable, default=None
            Training data, or the function of the seed, as in
            :func:`compare_dynamics`; None are those that the comparison was run with,
            which a result from a file does not hold.
        y : array-like of shape (n_samples,), default=None
            Targets; None as in :func:`compare_dynamics`.
        estimator : NoisyDiffusionClassifier or NoisyDiffusionRegressor, default=None
            With the settings of the comparison, but it may be on another device; None
            is the one that it was run with.
        phases : str or iterable of str, default=None
            Of "start", "noise", "quench" and "quench_loss"; None are all.
        n_jobs : int, default=None
            Seeds at a time, through joblib.

        Returns
        -------
        pandas.DataFrame
            A row for each row of :meth:`ends`, in the same order, or for those of the
            phases asked for; see :meth:`with_measures`. ``attrs["provenance"]`` says
            where it was measured.

        Raises
        ------
        TypeError
            If a measure or the estimator is not of the right kind.
        ValueError
            If parameters were not kept, data or estimator are missing, its settings are
            not those of the protocol, or a loss is not that of the table, which tells
            other data.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from flatmin import NoisyDiffusionClassifier, compare_dynamics
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = NoisyDiffusionClassifier(lr=0.1, max_iter=20, warmup={"max_iter": 50})
        >>> found = compare_dynamics(
        ...     ["gd"], X, y, estimator=clf, n_seeds=[0], keep_params=True
        ... )
        >>> measured = found.measure({"norm": lambda risk, theta: theta.norm()})
        >>> measured.index.tolist()
        [('noise', 'gd', 0), ('start', 'gd', 0)]
        >>> by_hand = np.linalg.norm(found.params("gd", 0, "noise"))
        >>> bool(np.isclose(by_hand, measured["norm"].iloc[0]))
        True
        """
        measures = read_metrics("measures", measures)
        ends: Any = self.ends()["loss"]
        if phases is not None:
            if not isinstance(phases, Iterable):
                raise TypeError(f"phases must be names. Got {phases!r}.")
            with naming("phases"):
                wanted = [phases] if isinstance(phases, str) else list(phases)
            for phase in wanted:
                check_known("phase", phase, self._phases())
            ends = ends[ends.index.isin(wanted, level="phase")]
        check_backend()
        source = resolve_source(
            self.source, self.protocol["estimator"], X=X, y=y, estimator=estimator
        )
        largest = self.table["loss"].where(np.isfinite(self.table["loss"])).abs()
        return measure_ends(
            ends,
            self.params,
            source,
            largest_losses=largest.groupby(self.table["seed"]).max(),
            measures=measures,
            n_threads=self.protocol["n_threads"],
            n_jobs=n_jobs,
        )

    def with_measures(self, measured: pd.DataFrame) -> ComparisonResult:
        """Return a result with further columns, for ``summary`` and for its file.

        Parameters
        ----------
        measured : pandas.DataFrame
            From :meth:`measure`, or with such an index.

        Returns
        -------
        ComparisonResult
            The columns are in the rows of the ends, and NaN elsewhere. Its
            ``provenance`` also says where they were measured, if ``measured`` does.

        Raises
        ------
        TypeError
            If it is no data frame.
        ValueError
            If the table has a column of that name, or no such end, or an end or a name
            comes twice.
        """
        if not isinstance(measured, pd.DataFrame):
            raise TypeError(
                "measured must be a DataFrame that measure returned. Got "
                f"{type(measured).__name__}."
            )
        taken = [str(name) for name in measured if name in self.table]
        if taken:
            raise ValueError(
                "measured must have names that the table does not use yet. Got "
                f"{', '.join(taken)}."
            )
        rows = end_rows(self.table, self.units)
        keys = pd.MultiIndex.from_frame(rows[["phase", "method", "seed"]])
        missing = measured.index.difference(keys)
        if len(missing):
            phase, method, seed = missing[0]
            raise ValueError(
                "measured must be of ends of this result. Got the end of "
                f"{phase!r} of {method!r} with seed {seed}, which is none."
            )
        if measured.index.has_duplicates or measured.columns.has_duplicates:
            raise ValueError(
                "measured must have one row for each end, and one column for each "
                "name. Got several; pass one after the other to with_measures, or "
                "choose one."
            )
        place = pd.Series(rows.index, keys)[measured.index].to_numpy()
        # Where the noise has no iterations its end is its start.
        values = measured.set_axis(place).groupby(level=0)
        if (values.nunique() > 1).any(axis=None):
            raise ValueError(
                "measured must have one value for one θ. Got two for the start and the "
                "end of a run without iterations; give one of them."
            )
        once = values.first()
        origin = list(self.provenance)
        here = measured.attrs.get("provenance")
        if here is not None and here not in origin:
            origin.append(here)
        return replace(self, table=self.table.join(once), provenance=origin)

    def summary(
        self,
        baseline: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        confidence: float = 0.95,
    ) -> pd.DataFrame:
        """Return means over seeds, and paired differences from a baseline.

        A seed decides data, initialisation and noise for all methods, so a difference
        is that of two methods on the same seed; see :func:`paired_difference`. The
        p values of one quantity are adjusted for the number of methods by
        :func:`holm`. A unit that failed has no end, and so no difference: it is
        counted in n_failed, in the phase where it failed and those behind it. Nor has
        one that did not go down to the loss of a quench: it is counted in n_left_out.

        Parameters
        ----------
        baseline : str, default=None
            A label; None is the first method.
        columns : sequence of str, default=None
            Of the table; None is all with numbers.
        confidence : float, default=0.95
            Of the t intervals, each for itself.

        Returns
        -------
        pandas.DataFrame
            Indexed by column, phase ("noise", "quench", "quench_loss") and method:
            mean, std over seeds with ddof 1, difference, low and high, p_value, p_holm,
            n (pairs), n_failed and n_left_out.

        Raises
        ------
        ValueError
            If there is no such label or column.
        """
        return summarize(
            self.ends(),
            self.units,
            methods=self.methods,
            baseline=baseline,
            columns=columns,
            confidence=confidence,
        )

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything into a file, and the parameters into one beside it.

        The numbers are JSON. What ``keep_params`` has kept goes into
        ``NAME.params.npz`` beside ``NAME.json``, which NumPy reads; the JSON tells
        whether a file of that name is the one that belongs to it. A checksum of the
        JSON tells whether somebody has changed it since.

        Parameters
        ----------
        path : str or path-like
            Replaced as a whole, or not at all.
        """
        check_path("path", path)
        rest = {"protocol": self.protocol, "provenance": self.provenance}
        write_comparison(
            Path(path),
            table=self.table,
            units=self.units,
            rest=rest,
            end_points=self.end_points,
        )

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> ComparisonResult:
        """Read what :meth:`to_json` wrote; all numbers are the same to the last bit.

        Parameters
        ----------
        path : str or path-like
            Without the file of the parameters beside it, all else is there.

        Returns
        -------
        ComparisonResult

        Raises
        ------
        ValueError
            If the file holds something else or has been edited, or the one beside it
            holds other parameters.
        """
        return cls(**read_comparison(Path(path)))
