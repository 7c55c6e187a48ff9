"""Operators with a closed form as dicts of tensors, and back."""

from __future__ import annotations

from typing import Any

from flatmin.linalg._operator import LinearOperator
from flatmin.linalg._structured import (
    DenseOperator,
    DiagonalOperator,
    LowRankOperator,
    ScaledIdentityOperator,
)

__all__ = ["operator_from_storable", "operator_to_storable"]

# What each is made of: arguments of its constructor, and attributes.
_PARTS: dict[type[LinearOperator], tuple[str, ...]] = {
    DenseOperator: ("matrix",),
    DiagonalOperator: ("diagonal",),
    LowRankOperator: ("eigenvalues", "eigenvectors"),
    ScaledIdentityOperator: ("scale", "size"),
}


def operator_to_storable(operator: LinearOperator) -> dict[str, Any]:
    """Return an operator as a dict of tensors and storable values.

    Parameters
    ----------
    operator : LinearOperator
        One of the classes that are made of tensors: dense, diagonal, low rank or a
        multiple of I.

    Returns
    -------
    dict
        For :func:`operator_from_storable`; shares the tensors.

    Raises
    ------
    TypeError
        If it is of another class.

    Examples
    --------
    >>> import torch
    >>> operator_to_storable(DiagonalOperator(torch.tensor([1.0, 2.0])))
    {'kind': 'DiagonalOperator', 'diagonal': tensor([1., 2.])}
    """
    kind = type(operator)
    if kind not in _PARTS:
        known = ", ".join(known.__name__ for known in _PARTS)
        raise TypeError(f"Operators made of tensors are {known}. Got {operator!r}.")
    parts = {name: getattr(operator, name) for name in _PARTS[kind]}
    return {"kind": kind.__name__, **parts}


def operator_from_storable(stored: dict[str, Any]) -> LinearOperator:
    """Return the operator that :func:`operator_to_storable` described.

    Parameters
    ----------
    stored : dict

    Returns
    -------
    LinearOperator

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import DiagonalOperator, operator_from_storable
    >>> from flatmin.linalg import operator_to_storable
    >>> stored = operator_to_storable(DiagonalOperator(torch.tensor([2.0, 3.0])))
    >>> operator_from_storable(stored).matvec(torch.ones(2))
    tensor([2., 3.])
    """
    kinds = {kind.__name__: kind for kind in _PARTS}
    parts = {name: value for name, value in stored.items() if name != "kind"}
    return kinds[stored["kind"]](**parts)
