"""Errors about numbers: what is required, and what was got."""

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["check_accuracy", "check_count", "check_positive", "is_count", "is_number"]


def is_count(value: Any, at_least: int = 1) -> bool:
    """Tell an integer that is large enough from all else; a bool is none.

    Parameters
    ----------
    value : object
    at_least : int, default=1

    Returns
    -------
    bool
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and int(value) >= at_least


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


def check_count(name: str, value: Any, at_least: int = 1) -> None:
    """Raise unless a value is an integer that is large enough.

    Parameters
    ----------
    name : str
        For the message.
    value : object
    at_least : int, default=1

    Raises
    ------
    ValueError
        With the name and the value.

    Examples
    --------
    >>> check_count("batch_size", True)
    Traceback (most recent call last):
    ValueError: batch_size must be an integer of at least 1. Got True.
    """
    if not is_count(value, at_least):
        raise ValueError(
            f"{name} must be an integer of at least {at_least}. Got {value!r}."
        )


def check_positive(name: str, value: Any, *, or_zero: bool = False) -> None:
    """Raise unless a value is finite and positive.

    Parameters
    ----------
    name : str
        For the message.
    value : object
    or_zero : bool, default=False
        Whether 0 will do.

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


def check_accuracy(rtol: Any, max_matvecs: Any, at_least: int = 1) -> None:
    """Raise unless these say when an estimate is good enough.

    Parameters
    ----------
    rtol : object
        A relative standard error to reach; 0 takes all products.
    max_matvecs : object
        Products at most.
    at_least : int, default=1
        The least that ``max_matvecs`` may be.

    Raises
    ------
    ValueError
        With the name and the value.
    """
    check_positive("rtol", rtol, or_zero=True)
    check_count("max_matvecs", max_matvecs, at_least)
