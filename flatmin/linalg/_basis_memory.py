"""Where a basis lives, in which precision, and how many vectors it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flatmin._utils.numbers import check_count, check_flag
from flatmin._utils.placement import resolve_device
from flatmin.linalg._distributed import VectorShards, default_group
from flatmin.linalg._operator import LinearOperator

__all__ = [
    "BasisMemory",
    "basis_memory",
    "basis_size",
    "check_max_basis",
    "search_arguments",
]

# Numbers in a basis (128 MiB in float32) up to which it is larger than it has to be:
# most solves then need no restart, which can stall on eigenvalues inside of the
# spectrum, as the smaller ones of largest magnitude are.
_ROOMY = 1 << 25


@dataclass(frozen=True)
class BasisMemory:
    """What is settled of a basis before a search."""

    n_basis: int
    dtype: torch.dtype
    device: torch.device
    ranks: VectorShards


def basis_size(size: int, k: int) -> int:
    """Return how many vectors a basis for k of ``size`` eigenpairs may hold.

    Parameters
    ----------
    size : int
        D.
    k : int

    Returns
    -------
    int
    """
    roomy = 4 * k + 40
    return roomy if roomy * size <= _ROOMY else max(20, 2 * k + 10)


def basis_memory(
    operator: LinearOperator,
    k: int,
    tol: float,
    *,
    max_basis: Any,
    basis_device: Any,
    basis_dtype: Any,
    distributed: Any,
) -> BasisMemory | None:
    """Return what arguments of :func:`eigsh` ask for; None where none is given.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    k : int
    tol : float
    max_basis, basis_device, basis_dtype, distributed : object
        As of :func:`eigsh`.

    Returns
    -------
    BasisMemory or None

    Raises
    ------
    ValueError
        If one does not fit.
    RuntimeError
        If ``distributed`` is True and there is no process group.
    """
    distributed = check_flag("distributed", distributed)
    if not distributed and max_basis is basis_device is basis_dtype is None:
        return None
    size = operator.shape[-1]
    n_basis = basis_size(size, k)
    if max_basis is not None:
        max_basis = check_max_basis(max_basis, k)
        n_basis = min(max_basis, max(n_basis, size // 2))
    device = (
        operator.device
        if basis_device is None
        else resolve_device(basis_device, "basis_device")
    )
    dtype = _resolve_basis_dtype(basis_dtype, operator.dtype, tol)
    ranks = VectorShards(size, operator.device)
    if distributed:
        ranks = default_group(size, operator.device)
    return BasisMemory(n_basis, dtype, device, ranks)


def check_max_basis(max_basis: Any, k: int) -> int:
    """Return the size of a basis for k eigenpairs, or raise ValueError.

    Parameters
    ----------
    max_basis : object
    k : int

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If it is no number above k.
    """
    size = check_count("max_basis", max_basis)
    if size <= k:
        raise ValueError(
            f"max_basis must be above k = {k}: a basis holds the wanted vectors and at "
            f"least one more. Got {size}; ask for fewer pairs."
        )
    return size


def search_arguments(
    *, max_matvecs: Any, max_basis: Any, basis_device: Any, basis_dtype: Any
) -> dict[str, Any]:
    """Return those arguments of :func:`eigsh` that are given, looked at before a pass.

    Parameters
    ----------
    max_matvecs, max_basis, basis_device, basis_dtype : object
        As of :func:`eigsh`.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If one does not fit.
    """
    found: dict[str, Any] = {}
    for name, value in {"max_matvecs": max_matvecs, "max_basis": max_basis}.items():
        if value is not None:
            found[name] = check_count(name, value)
    if basis_device is not None:
        found["basis_device"] = resolve_device(basis_device, "basis_device")
    if basis_dtype is not None:
        found["basis_dtype"] = _check_basis_dtype(basis_dtype)
    return found


def _check_basis_dtype(given: Any) -> torch.dtype:
    dtype: Any = getattr(torch, given, None) if isinstance(given, str) else given
    known = (torch.float64, torch.float32, torch.bfloat16)
    if isinstance(dtype, torch.dtype) and dtype in known:
        return dtype
    raise ValueError(
        "basis_dtype must be torch.float64, torch.float32 or torch.bfloat16. Got "
        f"{given!r}."
    )


def _resolve_basis_dtype(given: Any, products: torch.dtype, tol: float) -> torch.dtype:
    if given is None:
        return products
    dtype = _check_basis_dtype(given)
    eps = torch.finfo(dtype).eps
    if eps < torch.finfo(products).eps:
        raise ValueError(
            f"basis_dtype must be no finer than the products, {products}. Got {dtype}; "
            "leave it at None."
        )
    if dtype != products and tol < eps:
        raise ValueError(
            f"tol must be at least {eps:g}, the rounding of a basis in {dtype}. Got "
            f"{tol:g}; raise tol, or take a finer basis_dtype."
        )
    return dtype
