"""Numbers that are not defined are no picture: they are refused, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatmin.analysis import Alignment

__all__ = ["check_drawable"]


def check_drawable(table: Alignment, numbers: Any, what: str) -> None:
    """Raise if all numbers that are to be drawn are NaN.

    Parameters
    ----------
    table : Alignment
        That they are of, and that knows why.
    numbers : array-like
    what : str
        What they are, as the sentence should call it.

    Raises
    ------
    ValueError
        With the reason.
    """
    if np.isfinite(np.asarray(numbers, float)).any():
        return
    reasons = [
        f"{name}: {table.undefined[name]}"
        for name in ("pairs", "projection residual")
        if name in table.undefined
    ]
    raise ValueError(
        f"{what} of this Alignment are not defined, so there is nothing to draw. Got "
        f"NaN alone ({'; '.join(reasons) or 'without a reason'}); use all examples, "
        "subset=None, or a smaller k."
    )
