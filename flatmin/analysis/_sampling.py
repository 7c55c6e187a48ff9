"""How well some of the examples stand for all of them: the jackknife over blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from flatmin._utils.numbers import check_between
from flatmin._utils.results import ShortRepr

__all__ = ["Sampled", "Sampling", "jackknife"]


@dataclass(frozen=True, repr=False, eq=False)
class Sampling(ShortRepr):
    """What a result of a subset knows of all the examples.

    The n examples are in ten blocks. Each block is left out once where a number is far
    from linear in the examples, as eigenvalues are; that costs nine times the subset
    more. λ₁ of n examples is too large: the jackknife tells by how much, subtracts it
    and adds its square to that of the error. Traces are means over examples, or nearly
    so: they are measured on each block alone, which costs the subset once more. A draw
    without replacement has 1 - n/N of the variance of a free one. ``interval`` of a
    result is Student's, with nine degrees of freedom.

    How often it covers was measured: ``benchmarks/subsets.py``.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from flatmin import CurvatureAnalyzer, NoisyDiffusionClassifier
    >>> clf = NoisyDiffusionClassifier(max_iter=10).fit(*load_digits(return_X_y=True))
    >>> trace = CurvatureAnalyzer(clf, matrix="ggn", subset=500, random_state=0).trace()
    >>> trace.sampling.n_examples, trace.sampling.n_all
    (500, 1797)
    """

    n_examples: int  # n, drawn without replacement
    n_all: int  # N
    n_blocks: int  # of the jackknife
    bias: Any  # what was subtracted from the number of the subset
    stderr: Any  # of the draw of the examples; the result's holds that of probes, too

    def __str__(self) -> str:
        return f"{self.n_examples} of {self.n_all} examples, {self.n_blocks} blocks"


class Sampled:
    """A result that may be of a subset, and its interval then."""

    value: Any
    stderr: Any
    sampling: Sampling | None

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """Return the ends of an interval that covers the number of all examples.

        It is Student's, with one degree of freedom less than there are blocks.

        Parameters
        ----------
        level : float, default=0.95
            Share of the draws in which it covers, between 0 and 1.

        Returns
        -------
        low, high : float or ndarray

        Raises
        ------
        ValueError
            If ``level`` is not between 0 and 1, or the result is of all examples.
        """
        level = check_between("level", level, 0, 1)
        if self.sampling is None:
            raise ValueError(
                "An interval is for a result of a subset. Got one of all examples, "
                "which its stderr describes: that of probes, or 0."
            )
        law = t(self.sampling.n_blocks - 1)
        reach = float(law.ppf((1 + level) / 2)) * self.stderr
        return self.value - reach, self.value + reach


def jackknife(
    value: Any, replicates: Any, *, kept: float, share: float
) -> tuple[Any, Any]:
    """Return bias and error of a subset's number as an estimate of the whole's.

    The number of n examples has a bias of b/n, that of all N one of b/N. Replicates are
    the number on equally large parts of the subset, in which each example comes equally
    often: a share q of the n each. Their mean is off by b/(qn), and their spread is
    (1 - q)/q times the variance of the subset's number. Both the bias and the variance
    are 1 - n/N of what they would be for examples of a distribution.

    The square of the bias is added to the variance: a bias that is not b/n is removed
    in part only. Of one that falls with the root of n it is the half, as that of λ₁
    where no eigenvalue stands out.

    Parameters
    ----------
    value : float or ndarray of shape (...)
        Of the subset.
    replicates : array-like of shape (J, ...)
        Of the subset without one of J blocks, or of each block alone.
    kept : float
        q, 1 - 1/J or 1/J.
    share : float
        n / N.

    Returns
    -------
    bias : float or ndarray of shape (...)
        To be subtracted from ``value``.
    stderr : float or ndarray of shape (...)

    References
    ----------
    J. Shao and C. F. J. Wu, "A general theory for jackknife variance estimation", 1989,
    :doi:`10.1214/aos/1176347263`; M. H. Quenouille, "Notes on bias in estimation",
    1956, :doi:`10.1093/biomet/43.3-4.353`.

    Examples
    --------
    The variance of (0, 2, 4), divisor 3, without one of them each. Its bias is
    removed exactly: 8/3 + 4/3 is the variance with divisor 2. Of their mean the squared
    error is that variance over 3.

    >>> bias, _ = jackknife(8 / 3, [1.0, 4.0, 1.0], kept=2 / 3, share=0.0)
    >>> round(float(8 / 3 - bias), 6)
    4.0
    >>> _, stderr = jackknife(2.0, [3.0, 2.0, 1.0], kept=2 / 3, share=0.0)
    >>> round(float(stderr**2), 6)
    1.333333
    """
    replicates = np.asarray(replicates, dtype=np.float64)
    scale = (1 - share) * kept / (1 - kept)
    bias = scale * (replicates.mean(0) - value)
    return bias, np.sqrt(scale * replicates.var(0) + bias**2)
