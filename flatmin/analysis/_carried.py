"""Numbers that follow from one that is known without bias, and their errors."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["carried", "reciprocal", "root"]


def root(number: float) -> float:
    """Return √x."""
    return math.sqrt(number)


def reciprocal(number: float) -> float:
    """Return 1/x, infinity for 0."""
    return 1 / number if number else math.inf


def carried(
    function: Callable[[float], float], number: float, stderr: float
) -> tuple[float, float]:
    """Return a monotone function of a number that is 0 or more, and its error.

    An estimate without bias of a number near 0 may be below it. That must be cut off
    last: of parts that are cut off at 0 the spread is too small, or none. So the
    interval of two standard errors is carried through, as far as it lies above 0, and
    the error is half the way to its farther end.

    Parameters
    ----------
    function : callable
    number : float
        Also below 0.
    stderr : float
        Of the number; 0 is exact.

    Returns
    -------
    value : float
    stderr : float
        Infinity where the interval has no end.

    Examples
    --------
    Of 4 ± 1.5 the root is between 1 and √7, of -1 ± 8 between 0 and 4:

    >>> carried(root, 4.0, 1.5), carried(root, -1.0, 8.0)
    ((2.0, 0.5), (0.0, 2.0))
    >>> carried(reciprocal, 1.0, 0.25), carried(reciprocal, 1.0, 0.5)
    ((1.0, 0.5), (1.0, inf))
    """
    number = max(number, 0.0)
    value = function(number)
    if stderr == 0 or not math.isfinite(stderr):
        return value, stderr
    if math.isinf(value):
        return value, math.inf
    ends = (max(number - 2 * stderr, 0.0), number + 2 * stderr)
    return value, max(abs(function(end) - value) for end in ends) / 2
