"""How results show themselves: numbers as they are, arrays by their shape."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from flatmin._utils.arrays import to_numpy

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HtmlTable", "ShortRepr", "as_array", "html_table"]


class ShortRepr:
    """A ``repr`` of one line for a dataclass, whatever its arrays hold.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, repr=False)
    ... class Pair(ShortRepr):
    ...     value: float
    ...     vector: np.ndarray
    >>> Pair(1 / 3, np.zeros((100, 100)))
    Pair(value=0.333333, vector=<float64 of shape (100, 100)>)
    """

    def __repr__(self) -> str:
        shown = [
            f"{field.name}={_shown(getattr(self, field.name))}"
            for field in fields(self)  # type: ignore[arg-type]
            if field.repr
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


class _HasFrame(Protocol):
    def to_frame(self) -> pd.DataFrame: ...


class HtmlTable:
    """A table in a notebook, for a result that has ``to_frame``."""

    def _repr_html_(self: _HasFrame) -> str | None:
        return html_table(self.to_frame())


def as_array(value: Any, dtype: Any, copy: bool | None) -> np.ndarray:
    """Return what ``__array__`` of a result has to return.

    Parameters
    ----------
    value : Tensor, ndarray or float
    dtype : dtype or None
    copy : bool or None
        As NumPy asks: None copies where it has to, False raises there.

    Returns
    -------
    ndarray
    """
    return np.array(to_numpy("value", value), dtype=dtype, copy=copy)


def html_table(frame: pd.DataFrame) -> str | None:
    """Return a table as a notebook shows it.

    Parameters
    ----------
    frame : pandas.DataFrame

    Returns
    -------
    str or None
        None where pandas is told to show none.
    """
    html: str | None = frame._repr_html_()  # type: ignore[operator]
    return html


def _shown(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim == 0:
            return _shown(value.item())
        dtype = str(value.dtype).removeprefix("torch.")
        return f"<{dtype} of shape {tuple(value.shape)}>"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
