"""How often something happened, and how well that is known."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binomtest
from torch import Tensor

__all__ = ["Proportion"]


@dataclass(frozen=True)
class Proportion:
    """The share of chains with some property, with its Wilson interval.

    Attributes
    ----------
    value, low, high : float
        The share, and the ends of its interval.
    count, n : int
        How many have the property, and of how many.

    Examples
    --------
    >>> import torch
    >>> from flatmin.dynamics import Proportion
    >>> Proportion.of(torch.tensor([True, False])).value
    0.5
    """

    value: float
    low: float
    high: float
    count: int
    n: int

    @classmethod
    def of(cls, happened: Tensor, confidence: float = 0.95) -> Proportion:
        """Count.

        Parameters
        ----------
        happened : Tensor of shape (n_chains,)
            Boolean.
        confidence : float, default=0.95
            Of the interval.

        Returns
        -------
        Proportion

        Raises
        ------
        ValueError
            If ``confidence`` is not between 0 and 1.

        References
        ----------
        E. B. Wilson, "Probable inference, the law of succession, and statistical
        inference", 1927, :doi:`10.1080/01621459.1927.10502953`.

        Examples
        --------
        >>> import torch
        >>> Proportion.of(torch.arange(100) < 10)
        Proportion(value=0.1, low=0.0552..., high=0.1743..., count=10, n=100)
        """
        count, n = int(happened.sum()), happened.numel()
        interval = binomtest(count, n).proportion_ci(confidence, method="wilson")
        return cls(count / n, float(interval.low), float(interval.high), count, n)

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"
