"""What a cited claim is, how it is judged, and what is refused as one.

A new claim is a file ``plot_*.py`` beside this one with a ``CLAIM``. Its inequalities,
seeds and settings are committed before its numbers. ``_trial.py`` carries it out.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
from scipy import stats

from flatmin.comparison import holm, paired_difference

# What was seen of a source: a claim is quoted only as far as that.
MARKS = ("abstract", "text", "second hand", "code", "from memory")
FEWEST_SEEDS = {"small": 8, "cnn": 6}


@dataclass(frozen=True)
class Source:
    """Where a claim, or an objection to it, is made."""

    cite: str
    seen: str  # of MARKS


@dataclass(frozen=True)
class Inequality:
    """low ≤ left - right ≤ high, of means over paired seeds; right may be 0."""

    says: str
    left: str  # the name of an outcome: one number a seed
    right: str = "0"
    low: float = -math.inf
    high: float = math.inf

    def judge(self, left, right=None, *, confidence=0.95):
        """Return "supported", "refuted" or "neither", and the paired difference.

        The t interval decides: within the bounds, or wholly outside.
        """
        right = [0.0] * len(left) if right is None else right
        found = paired_difference(left, right, confidence=confidence)
        if self.low <= found.low and found.high <= self.high:
            return "supported", found
        if found.high < self.low or found.low > self.high:
            return "refuted", found
        return "neither", found

    def p_value(self, left, right=None):
        """Return that of "not within the bounds", by one-sided t tests at each bound.

        Both must be rejected to say "within", so the larger one counts.
        """
        right = np.zeros(len(left)) if right is None else np.asarray(right)
        differences = np.asarray(left) - right
        differences = differences[np.isfinite(differences)]
        if len(differences) < 2:
            return math.nan
        tests = [
            stats.ttest_1samp(differences, bound, alternative=side).pvalue
            for bound, side in ((self.low, "greater"), (self.high, "less"))
            if math.isfinite(bound)
        ]
        return float(max(tests))


@dataclass(frozen=True)
class Claim:
    """A claim as it is put to the test."""

    title: str
    says: str
    sources: tuple[Source, ...]
    inequalities: tuple[Inequality, ...]
    seeds: tuple[int, ...]
    tuned_on: tuple[int, ...]  # seeds of pilots and of tuning
    protocol: str
    objection: str
    would_change: str  # the verdict
    network: str = "small"  # of FEWEST_SEEDS

    def __post_init__(self):
        for field in fields(self):
            if field.name != "tuned_on" and not getattr(self, field.name):
                raise ValueError(f"A claim needs {field.name}. Got none.")
        for source in self.sources:
            if source.seen not in MARKS or not source.cite:
                raise ValueError(
                    f"A source needs a citation, and what was seen of it, of {MARKS}. "
                    f"Got {source}."
                )
        for inequality in self.inequalities:
            if inequality.low == -math.inf and inequality.high == math.inf:
                raise ValueError(
                    f"An inequality needs a bound. Got none of {inequality.says!r}."
                )
        if self.network not in FEWEST_SEEDS:
            raise ValueError(
                f"network must be of {tuple(FEWEST_SEEDS)}. Got {self.network!r}."
            )
        fewest = FEWEST_SEEDS[self.network]
        if len(set(self.seeds)) < fewest:
            raise ValueError(
                f"A claim needs {fewest} seeds or more on a {self.network} network. "
                f"Got {len(set(self.seeds))}."
            )
        if set(self.seeds) & set(self.tuned_on):
            raise ValueError(
                "seeds must be none of those of pilots and of tuning. Got "
                f"{sorted(set(self.seeds) & set(self.tuned_on))}."
            )


def judged(claim, outcomes):
    """Return a row for each inequality: verdict, mean, interval, p values.

    ``outcomes`` holds one number a seed under each name; what is not finite (a run that
    diverged) leaves its pair out, and is counted.
    """
    rows = []
    for inequality in claim.inequalities:
        # Stored results hold None for what is not finite.
        left = np.array(outcomes[inequality.left], dtype=float)
        right = np.zeros(len(left))
        if inequality.right != "0":
            right = np.array(outcomes[inequality.right], dtype=float)
        verdict, found = inequality.judge(left, right)
        rows.append(
            {
                "says": inequality.says,
                "verdict": verdict,
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "lost": len(left) - found.n,
                "p": inequality.p_value(left, right),
            }
        )
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(adjusted)
    return rows
