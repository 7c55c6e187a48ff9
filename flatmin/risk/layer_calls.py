"""What went into each layer, and the gradient of a scalar in what came out.

The gradient of an example in a layer's parameters is a product of these two, so sums
over examples need no per-example backward pass. The gradient is taken at the *edge* of
the output in autograd's graph: the output tensor itself may be overwritten by an
activation that works in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from flatmin.risk.model import FlatModel

__all__ = ["LayerCall", "UnsupportedLayers", "record_calls"]


class UnsupportedLayers(Exception):  # noqa: N818 - asks for another path
    """The parameters are not all those of layers whose rows are known."""


@dataclass(frozen=True)
class LayerCall:
    """One call of one layer on n examples."""

    module: nn.Module
    input: Tensor  # (n, ...)
    slope: Tensor  # (n, ...) gradient of the scalar in the output


@torch.enable_grad()
def record_calls(
    model: FlatModel,
    X: Tensor,
    scalar: Callable[[Tensor], Tensor],
    layers: list[nn.Module],
) -> tuple[Tensor, list[LayerCall]]:
    """Run the network forward and back to the outputs of some of its layers.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    X : Tensor of shape (n, ...)
    scalar : callable
        Maps the outputs, shape (n, ...), to one number an example, shape (n,).
    layers : list of torch.nn.Module
        Parts of the model.

    Returns
    -------
    values : Tensor of shape (n,)
        Of the scalar.
    calls : list of LayerCall
        Of those layers, in the order of the calls.

    Raises
    ------
    UnsupportedLayers
        If a call has other arguments than one tensor of n examples, or a parameter is
        used behind the back of its layer.
    """
    calls: list[tuple[nn.Module, Tensor, GradientEdge]] = []
    watch = _Watch({id(parameter) for parameter in model.params})

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        given = arguments[0] if len(arguments) == 1 else None
        if not (isinstance(given, Tensor) and isinstance(output, Tensor)):
            raise UnsupportedLayers(f"{module} was not called with one tensor")
        if given.shape[:1] != X.shape[:1] or output.shape[:1] != X.shape[:1]:
            raise UnsupportedLayers(f"{module} does not have the examples first")
        if output.requires_grad:  # not where the module switches gradients off
            calls.append((module, given.detach(), get_gradient_edge(output)))

    handles = [layer.register_forward_hook(note) for layer in layers]
    handles += [layer.register_forward_pre_hook(watch.enter) for layer in layers]
    handles += [layer.register_forward_hook(watch.leave) for layer in layers]
    try:
        with watch:
            outputs = model(X)
        values = scalar(outputs)
    finally:
        for handle in handles:
            handle.remove()
    if not calls or not values.requires_grad:
        return values.detach(), []
    edges = [edge for *_, edge in calls]
    slopes = torch.autograd.grad(values.sum(), edges, allow_unused=True)
    return values.detach(), [
        LayerCall(module, given, slope)
        for (module, given, _), slope in zip(calls, slopes, strict=True)
        if slope is not None
    ]


class _Watch(TorchFunctionMode):
    """Raises where a parameter is used outside of its layer's forward."""

    def __init__(self, parameters: set[int]) -> None:
        super().__init__()
        self.parameters = parameters
        self._depth = 0

    def enter(self, _module: nn.Module, _arguments: Any) -> None:
        self._depth += 1

    def leave(self, _module: nn.Module, _arguments: Any, _output: Any) -> None:
        self._depth -= 1

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._depth == 0 and self._holds((*args, *kwargs.values())):
            name = getattr(func, "__name__", func)
            raise UnsupportedLayers(f"a parameter in {name} outside of its layer")
        return func(*args, **kwargs)

    def _holds(self, values: Iterable[Any]) -> bool:
        return any(
            id(value) in self.parameters
            or (isinstance(value, list | tuple) and self._holds(value))
            for value in values
        )
