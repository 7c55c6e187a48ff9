"""From what a data set gives to a pair: the inputs of a module, and its targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from flatmin._utils.messages import message
from flatmin._utils.trees import Inputs, Tree, as_tree, is_nested, lists_as_tuples

__all__ = ["as_pair", "collated", "take_targets_out"]


def collated(collate: Callable[..., Any], examples: list[Any]) -> Any:
    """Put examples together, and say what to do where their shapes differ.

    Parameters
    ----------
    collate : callable
        Makes a batch of a list of examples.
    examples : list

    Returns
    -------
    object
        The batch.

    Raises
    ------
    ValueError
        If PyTorch cannot stack them.
    RuntimeError
        If the collate function raises another one.
    """
    try:
        return collate(examples)
    except RuntimeError as error:
        if "equal size" not in str(error):  # of torch.stack
            raise
        raise ValueError(
            f"Examples that are read together must have one shape. Got: "
            f"{message(error)}. Pass a DataLoader whose collate_fn pads them, for "
            "example by torch.nn.utils.rnn.pad_sequence(..., batch_first=True), and "
            "gives a mask, or the lengths, beside."
        ) from error


def as_pair(batch: Any, target: str | None) -> tuple[Inputs, Tensor]:
    """Return the inputs and the targets of a batch.

    Parameters
    ----------
    batch : tuple of (X, y) or mapping
        What the collate function gave.
    target : str or None
        The name of the targets in a mapping.

    Returns
    -------
    X : Tensor of shape (n, ...) or Tree
    y : Tensor of shape (n, ...)

    Raises
    ------
    TypeError
        If it is neither, or not of tensors.
    """
    X: Any
    if isinstance(batch, Mapping):
        X, y = take_targets_out(batch, target)
        X = as_tree(lists_as_tuples(X))
    elif isinstance(batch, list | tuple) and len(batch) == 2:
        X, y = batch
        # The default collate turns tuples into lists, and no tensor is a list.
        X = lists_as_tuples(X)
        X = as_tree(X) if is_nested(X) else X
    else:
        X = y = None
    leaves = X.leaves if isinstance(X, Tree) else (X,)
    if all(isinstance(part, Tensor) for part in (*leaves, y)):
        return X, y
    raise TypeError(
        "A data set must give pairs (x, y) that collate to two tensors, or mappings "
        f"of tensors. Got {type(batch).__name__}; wrap the data set, or pass a "
        "DataLoader whose collate_fn returns (X, y)."
    )


def take_targets_out(
    batch: Mapping[str, Any], target: str | None
) -> tuple[dict[str, Any], Any]:
    """Return a mapping without the targets, and these.

    Parameters
    ----------
    batch : mapping
    target : str or None
        The name of the targets.

    Returns
    -------
    inputs : dict
    targets : object

    Raises
    ------
    ValueError
        If the mapping has no such name.
    """
    names = list(batch.keys())
    if target not in names:
        got = "target=None" if target is None else f"target={target!r}"
        raise ValueError(
            "A mapping of inputs and targets needs the name of the targets, "
            f"target=NAME, which is one of {names}. Got {got}."
        )
    return {name: batch[name] for name in names if name != target}, batch[target]
