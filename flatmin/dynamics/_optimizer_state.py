"""The state of an optimizer of one flat θ, told parameter by parameter."""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["join_state", "split_state"]

Shapes = tuple[tuple[int, ...], ...]

# One number a parameter, in PyTorch's optimizers, whatever the parameter's shape.
_NUMBERS = {"step", "eta", "mu", "mu_product"}


def split_state(state: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Return a state of one flat parameter as one of many.

    Parameters
    ----------
    state : dict
        ``state_dict()`` of an optimizer of one parameter of shape (D,).
    shapes : tuple of tuple of int
        Of the parameters that θ lists.

    Returns
    -------
    dict
        Shares the tensors of shape (D,).
    """
    sizes = [prod(shape) for shape in shapes]
    flat = state["state"].get(0)
    parts: dict[int, dict[str, Any]] = {}
    if flat is not None:
        parts = {i: {} for i in range(len(shapes))}
        for name, value in flat.items():
            # Each its own: an optimizer counts its steps up in place.
            pieces = [copy.deepcopy(value) for _ in shapes]
            if _lists(value, (sum(sizes),)):
                split = zip(value.split(sizes), shapes, strict=True)
                pieces = [piece.view(shape) for piece, shape in split]
            for i, piece in enumerate(pieces):
                parts[i][name] = piece
    (group,) = state["param_groups"]
    group = {**group, "params": list(range(len(shapes)))}
    return {**state, "state": parts, "param_groups": [group]}


def join_state(state: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Return a state of many parameters as one of the flat θ.

    Parameters
    ----------
    state : dict
        As from :func:`split_state`, or from an optimizer of the parameters themselves.
    shapes : tuple of tuple of int
        Of the parameters that θ lists.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If it is the state of other parameters, or one step would not serve them all.
    """
    groups, parts = state["param_groups"], state["state"]
    if [len(group["params"]) for group in groups] != [len(shapes)]:
        raise ValueError(
            f"The optimizer needs a state of one group of {len(shapes)} parameters. "
            f"Got {[len(group['params']) for group in groups]}; leave f_optimizer out."
        )
    (group,) = groups
    ordered = [parts[key] for key in group["params"] if key in parts]
    flat: dict[int, dict[str, Any]] = {}
    if ordered:
        if len(ordered) != len(shapes) or len({frozenset(p) for p in ordered}) > 1:
            raise ValueError(
                "The optimizer steps all parameters together and needs a state of each "
                f"of the {len(shapes)}. Got one of {len(ordered)}; leave f_optimizer "
                "out."
            )
        flat[0] = {
            name: _join(name, [part[name] for part in ordered], shapes)
            for name in ordered[0]
        }
    return {**state, "state": flat, "param_groups": [{**group, "params": [0]}]}


def _join(name: str, values: list[Any], shapes: Shapes) -> Any:
    pairs = zip(values, shapes, strict=True)
    if name not in _NUMBERS and all(_lists(value, shape) for value, shape in pairs):
        return torch.cat([value.reshape(-1) for value in values])
    first = values[0]
    if any(value is not first and bool(value != first) for value in values):
        raise ValueError(
            f"The optimizer steps all parameters together. Got a state in which {name} "
            "differs between them; leave f_optimizer out."
        )
    return first


def _lists(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == shape
