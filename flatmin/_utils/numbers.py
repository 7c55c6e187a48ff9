"""Errors about numbers: what is required, and what was got."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

__all__ = [
    "MIN_MATVECS",
    "check_accuracy",
    "check_between",
    "check_count",
    "check_flag",
    "check_held_by",
    "check_positive",
    "is_count",
    "is_number",
]


def is_count(value: Any, at_least: int = 1) -> bool:
    """Tell an integer of 64 bits that is large enough from all else; a bool is none.

    Parameters
    ----------
    value : object
    at_least : int, default=1

    Returns
    -------
    bool
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and at_least <= int(value) < 2**63


def is_number(value: Any) -> bool:
    """Tell a finite real number from all else; a bool is none.

    Parameters
    ----------
    value : object

    Returns
    -------
    bool
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def check_count(
    name: str,
    value: Any,
    at_least: int = 1,
    *,
    at_most: int | None = None,
    limit: str = "",
) -> int:
    """Return an integer that is large enough as Python's, which does not overflow.

    Parameters
    ----------
    name : str
        For the message.
    value : object
    at_least : int, default=1
    at_most : int, default=None
        The largest that will do.
    limit : str, default=""
        What that is, for the message.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        With the name and the value.

    Examples
    --------
    >>> check_count("batch_size", True)
    Traceback (most recent call last):
    ValueError: batch_size must be an integer of at least 1. Got True.
    >>> check_count("k", 5, at_most=4, limit="D")
    Traceback (most recent call last):
    ValueError: k must be an integer between 1 and D = 4. Got 5.
    """
    if at_most is not None and not (is_count(value, at_least) and value <= at_most):
        raise ValueError(
            f"{name} must be an integer between {at_least} and {limit} = {at_most}. "
            f"Got {value!r}."
        )
    if not is_count(value, at_least):
        raise ValueError(
            f"{name} must be an integer of at least {at_least}"
            f"{', of 64 bits' if is_number(value) and value > 2**62 else ''}. Got "
            f"{value!r}."
        )
    return int(value)


def check_positive(name: str, value: Any, *, or_zero: bool = False) -> float:
    """Return a number that is finite and positive as Python's.

    Parameters
    ----------
    name : str
        For the message.
    value : object
    or_zero : bool, default=False
        Whether 0 will do.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        With the name and the value.

    Examples
    --------
    >>> check_positive("lr", float("nan"))
    Traceback (most recent call last):
    ValueError: lr must be a finite number above 0. Got nan.
    """
    if not (is_number(value) and (value > 0 or (or_zero and value == 0))):
        least = "of at least" if or_zero else "above"
        raise ValueError(f"{name} must be a finite number {least} 0. Got {value!r}.")
    return float(value)


def check_between(name: str, value: Any, low: float, high: float) -> float:
    """Return a number that lies between two others, or is one of them, as Python's.

    scikit-learn's ``check_scalar`` lets NaN pass.

    Parameters
    ----------
    name : str
        For the message.
    value : object
    low, high : float

    Returns
    -------
    float

    Raises
    ------
    ValueError
        With the name and the value.

    Examples
    --------
    >>> check_between("fraction", float("nan"), 0, 1)
    Traceback (most recent call last):
    ValueError: fraction must be a number between 0 and 1. Got nan.
    """
    if not (is_number(value) and low <= value <= high):
        raise ValueError(
            f"{name} must be a number between {low} and {high}. Got {value!r}."
        )
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """Return a bool, also NumPy's, as Python's; 1, "no" and None are none.

    Parameters
    ----------
    name : str
        For the message.
    value : object

    Returns
    -------
    bool

    Raises
    ------
    TypeError
        With the name and the value.

    Examples
    --------
    >>> check_flag("absolute", "no")
    Traceback (most recent call last):
    TypeError: absolute must be True or False. Got 'no'.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False. Got {value!r}.")
    return bool(value)


def check_held_by(
    name: str, value: float, dtype: torch.dtype, *, squared: bool = False
) -> None:
    """Raise if a finite number is infinite, or 0 without being so, in a dtype.

    Parameters
    ----------
    name : str
        For the message.
    value : float
        Finite.
    dtype : torch.dtype
        That of a run.
    squared : bool, default=False
        Whether its square, a variance, has to be held as well.

    Raises
    ------
    ValueError
        With the name, the value and the dtype.

    Examples
    --------
    >>> check_held_by("lr", 1e39, torch.float32)
    Traceback (most recent call last):
    ValueError: lr must be 0 or between 1.4e-45 and 3.4e+38, ... Got 1e+39.
    """
    limits = torch.finfo(dtype)
    power = 2 if squared else 1
    least = limits.smallest_normal * limits.eps
    low, high = least ** (1 / power), limits.max ** (1 / power)
    if value != 0 and not low <= abs(value) <= high:
        held = "whose square" if squared else "that"
        raise ValueError(
            f"{name} must be 0 or between {low:.2g} and {high:.2g}, a number {held} "
            f"{dtype} can hold. Got {value!r}."
        )


# A sketch of three vectors, of two products each, is the least that leaving one out
# gives an error of.
MIN_MATVECS = 6


def check_accuracy(rtol: Any, max_matvecs: Any) -> tuple[float, int]:
    """Return what says when an estimate is good enough, as Python's numbers.

    Parameters
    ----------
    rtol : object
        A relative standard error to reach; 0 takes all products.
    max_matvecs : object
        Products at most; 6 or more, whatever the method.

    Returns
    -------
    rtol : float
    max_matvecs : int

    Raises
    ------
    ValueError
        With the name and the value.
    """
    rtol = check_positive("rtol", rtol, or_zero=True)
    return rtol, check_count("max_matvecs", max_matvecs, MIN_MATVECS)
