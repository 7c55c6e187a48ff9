"""Optimizers by name or class, and their parameters checked before training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from flatmin._utils.names import check_known

__all__ = ["OPTIMIZERS", "resolve_optimizer"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}


def resolve_optimizer(
    optimizer: str | type[torch.optim.Optimizer], params: Mapping[str, Any]
) -> type[torch.optim.Optimizer]:
    """Return the optimizer class.

    "sgd" is the plain step θ ← θ - η g: the noise is the law's, not the optimizer's.

    Parameters
    ----------
    optimizer : str or torch.optim.Optimizer class
        Names: "sgd", "rmsprop", "adam".
    params : mapping of str to object
        Its keyword arguments, to be checked.

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
        check_known("optimizer", optimizer, OPTIMIZERS)
        optimizer = OPTIMIZERS[optimizer]
    is_class = isinstance(optimizer, type)
    if not (is_class and issubclass(optimizer, torch.optim.Optimizer)):
        raise TypeError(
            f"optimizer must be a name ({', '.join(OPTIMIZERS)}) or a class from "
            f"torch.optim. Got {optimizer!r}."
        )
    if issubclass(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS evaluates several gradients a step, and a noise law gives one. "
            "Use optimizer='sgd', 'rmsprop', 'adam' or another first-order optimizer."
        )
    known = list(inspect.signature(optimizer).parameters)[1:]
    for name in params:
        if not name.startswith("param_groups"):
            check_known(f"parameter of the optimizer {optimizer.__name__}", name, known)
    return optimizer
