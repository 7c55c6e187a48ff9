"""Measures of the layers of a module."""

from __future__ import annotations

from typing import Any

from flatmin.risk import EmpiricalRisk

__all__ = ["check_layers"]


def check_layers(risk: Any) -> None:
    """Raise unless a risk is one of a module, which has layers.

    Parameters
    ----------
    risk : object

    Raises
    ------
    TypeError
        If it is another one.
    """
    if not isinstance(risk, EmpiricalRisk):
        raise TypeError(
            "risk must be an EmpiricalRisk, whose module has layers. Got "
            f"{type(risk).__name__}."
        )
