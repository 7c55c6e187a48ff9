"""Optimizers by name or class, and their parameters checked before training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import nn

from flatmin._utils.messages import first_line
from flatmin._utils.names import check_known, check_text
from flatmin._utils.numbers import is_number

__all__ = ["OPTIMIZERS", "resolve_optimizer"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def resolve_optimizer(
    optimizer: str | type[torch.optim.Optimizer],
    settings: Mapping[str, Any],
    title: str = "optimizer",
) -> type[torch.optim.Optimizer]:
    """Return the optimizer class.

    "sgd" is the plain step θ ← θ - η g: the noise is the law's, not the optimizer's.

    Parameters
    ----------
    optimizer : str or torch.optim.Optimizer class
        Names: "sgd", "rmsprop", "adam", "adamw".
    settings : mapping of str to object
        Its keyword arguments, to be checked.
    title : str, default="optimizer"
        What messages call it.

    Returns
    -------
    type

    Raises
    ------
    ValueError
        If the name or a parameter does not exist, or the optimizer needs several
        gradients a step.
    TypeError
        If it is neither a name nor an optimizer class.

    Examples
    --------
    >>> resolve_optimizer("sgd", {"momentum": 0.9})
    <class 'torch.optim.sgd.SGD'>
    """
    if isinstance(optimizer, str):
        check_known(title, optimizer, OPTIMIZERS)
        optimizer = OPTIMIZERS[optimizer]
    is_class = isinstance(optimizer, type)
    if not (is_class and issubclass(optimizer, torch.optim.Optimizer)):
        raise TypeError(
            f"{title} must be a name ({', '.join(OPTIMIZERS)}) or a class from "
            f"torch.optim. Got {optimizer!r}."
        )
    if issubclass(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS evaluates several gradients a step, and a noise law gives one. "
            "Use optimizer='sgd', 'rmsprop', 'adam' or another first-order optimizer."
        )
    known = list(inspect.signature(optimizer).parameters)[1:]
    for name in settings:
        check_text("a name in optimizer_params", name)
        if not name.startswith("param_groups"):
            check_known(f"parameter of the optimizer {optimizer.__name__}", name, known)
    _check_values(optimizer, settings, known)
    return optimizer


def _check_values(
    optimizer: type[torch.optim.Optimizer],
    settings: Mapping[str, Any],
    known: Iterable[str],
) -> None:
    """Make one of a single number: NaN passes the checks of PyTorch."""
    values = {k: v for k, v in settings.items() if not k.startswith("param_groups")}
    for name, value in values.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            is_flag = isinstance(number, bool)
            if isinstance(number, Real) and not (is_flag or is_number(number)):
                raise ValueError(
                    f"optimizer_params[{name!r}] must be finite. Got {value!r}."
                )
    if not values:
        return
    lr = {"lr": 0.1} if "lr" in known else {}
    try:
        optimizer([nn.Parameter(torch.zeros(1))], **{**lr, **values})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"optimizer_params must be what {optimizer.__name__} takes. Got "
            f"{values!r}: {first_line(error)}."
        ) from error
