"""Numbers of a risk that are not finite are refused, with where they come from."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk import Risk

__all__ = ["check_finite", "check_loss", "in_dtype", "names_of"]


def check_finite(
    name: str, numbers: Tensor, risk: Risk, indices: Tensor | None = None
) -> Tensor:
    """Return numbers, one a coordinate, or raise if one is NaN or infinite.

    Parameters
    ----------
    name : str
        What they are, for the message.
    numbers : Tensor of shape (\\*chains, d)
    risk : Risk
        Whose parameters have names, if it has a layout.
    indices : Tensor of shape (d,), default=None
        The coordinates; None for all.

    Returns
    -------
    Tensor of shape (\\*chains, d)
        ``numbers`` as they are.

    Raises
    ------
    FloatingPointError
        With how many are not finite, and the parameters that they belong to.
    """
    finite = numbers.isfinite()
    if bool(finite.all()):
        return numbers
    wild = (~finite).reshape(-1, numbers.shape[-1]).any(0)
    named = names_of(wild, risk, indices)
    where = ", ".join(f"{parameter} ({n})" for parameter, n in named.items())
    raise FloatingPointError(
        f"{name} must be finite. Got NaN or infinity at {int(wild.sum())} of "
        f"{len(wild)} coordinates, of {where}. Either θ or the loss overflows, which "
        "float64 may mend, or the network has no such derivative at this θ, as a "
        "square root at 0: move θ, or leave these out where there is a select=."
    )


def check_loss(name: str, values: Tensor, remedy: str) -> Tensor:
    """Return values of a loss in float64, or raise if one is NaN or infinite.

    Parameters
    ----------
    name : str
        What they are, for the message.
    values : Tensor
    remedy : str
        What to do, for the message.

    Returns
    -------
    Tensor
        Of the shape of ``values``.

    Raises
    ------
    FloatingPointError
        With how many are not finite.
    """
    wild = ~values.isfinite()
    if bool(wild.any()):
        many = f", in {int(wild.sum())} of {wild.numel()}" if wild.numel() > 1 else ""
        raise FloatingPointError(
            f"{name} must be finite. Got {float(values[wild].flatten()[0])}{many}; "
            f"{remedy}, or compute in float64 if "
            f"it overflows in {str(values.dtype).removeprefix('torch.')}."
        )
    return values.double()


def in_dtype(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a sum of float64 in another dtype, or raise if it is too large for that.

    Parameters
    ----------
    name : str
        What it is, for the message.
    value : Tensor
    dtype : torch.dtype

    Returns
    -------
    Tensor
        Of the shape of ``value``.

    Raises
    ------
    FloatingPointError
        If it is infinite in that dtype, or not finite before.
    """
    value = value.to(dtype)
    check_loss(name, value, "scale the loss down")
    return value


def names_of(
    chosen: Tensor, risk: Risk, indices: Tensor | None = None
) -> dict[str, int]:
    """Count chosen coordinates by the parameters that they belong to.

    Parameters
    ----------
    chosen : Tensor of shape (d,)
        Of bools.
    risk : Risk
    indices : Tensor of shape (d,), default=None
        The coordinates; None for all.

    Returns
    -------
    dict of str to int
        Without parameters of which none is chosen; "θ" names all those of a risk
        without names.
    """
    if not bool(chosen.any()):
        return {}
    layout = getattr(risk, "layout", None)
    if layout is None:
        return {"θ": int(chosen.sum())}
    whole = chosen
    if indices is not None:
        whole = torch.zeros(risk.n_params, dtype=torch.bool, device=chosen.device)
        whole[indices] = chosen
    counts = {name: int(whole[layout.slice(name)].sum()) for name in layout.names}
    return {name: n for name, n in counts.items() if n}
