"""What a claim of the paper came to, in words that the report prints."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

# By the paper, who stays in GD's minimum and who moves on to a flatter one.
STAY = ("gld_const", "gld_dynamic", "gld_diagonal")
MOVE = ("sgd", "gld_leading", "gld_hessian")

# "collapsed": of a network that gives one answer to all, no sharpness is judged.
VERDICTS = ("reproduced", "partly", "not", "open", "collapsed")
VERDICTS += ("not tested at the paper's scale",)


@dataclass(frozen=True)
class Claim:
    """One row of the report."""

    where: str  # in the paper
    says: str
    verdict: str  # of VERDICTS
    effect: str  # with an interval over seeds, where there are seeds
    after: str = ""  # the same after the quench

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {VERDICTS}. Got {self.verdict}.")


def interval(sample):
    """Return the mean over seeds and its 95 % t interval."""
    sample = np.asarray(sample, dtype=float)
    mean, error = sample.mean(), stats.sem(sample)
    reach = error * stats.t.ppf(0.975, len(sample) - 1)
    return mean, mean - reach, mean + reach


def shown(mean, low, high, digits=3):
    """Return a mean with its interval, as text."""
    mean, low, high = (f"{x:.{digits}g}".replace("-", "−") for x in (mean, low, high))
    return f"{mean} ({low} to {high})"


def graded(whole, part=False):
    """Return the verdict on a claim that holds, or of which a part holds."""
    return "reproduced" if whole else "partly" if part else "not"
