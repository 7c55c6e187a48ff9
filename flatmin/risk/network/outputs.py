"""Which of the things that a module returns are its outputs: one rule for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["OutputTransform", "read_output"]

OutputTransform: TypeAlias = Callable[[Any], Tensor]
_REMEDY = "pass output_transform, for example output_transform=lambda outputs: "


def read_output(outputs: Any, output_transform: OutputTransform | None) -> Tensor:
    """Return the one tensor, among what a module returns, that the loss compares.

    A tensor is itself. Otherwise ``logits`` comes first, as an attribute or a key, then
    the first entry of a tuple or a list, or the first tensor in a mapping.

    Parameters
    ----------
    outputs : object
        What ``forward`` returns: a tensor, a tuple, a mapping, or an object such as a
        ``ModelOutput`` of Hugging Face.
    output_transform : callable or None
        Takes the place of this rule.

    Returns
    -------
    Tensor

    Raises
    ------
    TypeError
        If there is no tensor, the rule does not tell which, or the first of several is
        a single number, such as a loss.

    Examples
    --------
    >>> import torch
    >>> read_output({"loss": torch.tensor(2.0), "logits": torch.ones(1)}, None)
    tensor([1.])
    """
    if output_transform is not None:
        transformed = output_transform(outputs)
        if not isinstance(transformed, Tensor):
            raise TypeError(
                "output_transform must return one Tensor. Got "
                f"{type(transformed).__name__}."
            )
        return transformed
    if isinstance(outputs, Tensor):
        return outputs
    return _first(outputs)


def _first(outputs: Any) -> Tensor:
    is_mapping = isinstance(outputs, Mapping)
    logits = outputs.get("logits") if is_mapping else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if is_mapping:
        tensors = {k: v for k, v in outputs.items() if isinstance(v, Tensor)}
        several = [name for name in tensors if "logits" in str(name)]
        if len(several) > 1:
            raise TypeError(
                "The module must return one tensor that the loss compares with y. Got "
                f"{', '.join(map(repr, several))}; {_REMEDY}outputs[{several[0]!r}]."
            )
        first = next(iter(tensors.values()), None)
    else:
        first = outputs[0] if isinstance(outputs, tuple | list) and outputs else None
    if not isinstance(first, Tensor):
        held = f" of {_kinds(outputs)}" if isinstance(outputs, tuple | list) else ""
        if is_mapping:
            held = f" with {list(outputs)}"
        raise TypeError(
            "The module must return a Tensor, or a tuple or a mapping with one. Got "
            f"{type(outputs).__name__}{held}; {_REMEDY}outputs[0]."
        )
    if first.ndim == 0 and len(outputs) > 1:
        other = repr(list(outputs)[1]) if is_mapping else "1"
        raise TypeError(
            "The first of the module's outputs must have the examples on its first "
            "axis. Got a single number, such as the loss of a model that is given its "
            f"targets; leave them out of X, or {_REMEDY}outputs[{other}]."
        )
    return first


def _kinds(outputs: tuple[Any, ...] | list[Any]) -> str:
    return ", ".join(type(part).__name__ for part in outputs) or "nothing"
