"""What a function computes, as a graph of the kernels that it calls.

PyTorch's own ``make_fx`` makes the same graph. It imports Dynamo and Inductor, and
gives every node a fake tensor and a stack trace: most of its time goes there, and
nothing here needs them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from flatmin.risk.autodiff.plain_mode import PlainMode

__all__ = ["record"]

aten = torch.ops.aten

_TAG = "_flatmin_place"  # attribute of a tensor that a recorder has seen
# Forward mode asks them of each tangent; their results are no tensors.
_OF_SHAPES = {aten.is_same_size.default, aten._has_same_storage_numel.default}
# As of a number in the source, which Python may read. More are no such constants.
_MOST_NUMBERS = 1000


def record(
    function: Callable[..., Tensor], *args: Tensor
) -> tuple[Graph, dict[str, Tensor]]:
    """Run a function, and return what it computed.

    Parameters
    ----------
    function : callable
        Of tensors, free of mutations. Returns a Tensor.
    *args : Tensor
        The placeholders of the graph, in this order.

    Returns
    -------
    graph : torch.fx.Graph
        Of ATen calls. ``meta["form"]`` of a node that is a tensor is its shape, dtype
        and device.
    constants : dict of str to Tensor
        What it read besides its arguments, by the names in the graph.

    Raises
    ------
    RuntimeError
        If Python reads numbers that depend on the arguments, or if shapes depend on
        numbers: a graph would keep those of the first data. If random numbers are
        drawn, which a graph would draw anew at each use.
    """
    recorder = _Recorder()
    inputs = [recorder.add_input(argument) for argument in args]
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # it hands out tensors that are not seen
    try:
        with recorder:
            output = function(*inputs)
    finally:
        torch.set_autocast_cache_enabled(caches)
    if recorder.refused is not None:
        raise RuntimeError(recorder.refused)
    recorder.graph.output(recorder.node_of(output))
    return recorder.graph, recorder.constants


class _Recorder(PlainMode):
    """Notes each call of a kernel, and hands it on.

    A tensor is known again by an attribute, which it keeps as long as PyTorch holds its
    numbers: the recorder itself keeps no tensor alive but constants.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()
        self.constants: dict[str, Tensor] = {}
        self.refused: str | None = None
        self._nodes: list[Node | None] = []  # None for a number in the source
        self._names: dict[int, Node] = {}  # of the constants
        self._key = object()

    def add_input(self, argument: Tensor) -> Tensor:
        """Return an argument, as a tensor of its own that is known."""
        argument = argument.detach()  # one tensor may be given twice
        self._know(argument, self.graph.placeholder(f"in_{len(self._nodes)}"))
        return argument

    def node_of(self, value: Any) -> Any:
        """Return what stands in the graph for an argument of a call."""
        if not isinstance(value, Tensor):
            return value
        node = self._find(value)
        return self._constant(value) if node is None else node

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OF_SHAPES:
            return func(*args, **kwargs)
        if any(kind not in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # it says itself which calls it is made of
        if func is aten._efficientzerotensor.default:
            # Sums and products with these import Dynamo (torch 2.13).
            func = aten.zeros.default
        if func is aten.lift_fresh.default:  # a number in the source
            self._know(args[0], None)
            return args[0]
        return self._call(func, args, kwargs)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [*_tensors_in(args), *_tensors_in(kwargs.values())]
        is_source = bool(tensors) and all(map(self._is_source, tensors))
        self._check(func, args, tensors)
        noted = self._without_writing(func, args) if _writes(func) else func
        result = func(*args, **kwargs)
        found = _tensors_in((result,))
        if is_source and all(tensor.numel() <= _MOST_NUMBERS for tensor in found):
            self._know_all(result, None)
        elif found:  # others ask for shapes
            node = self.graph.call_function(
                noted,
                map_aggregate(args, self.node_of),
                map_aggregate(kwargs, self.node_of),
            )
            self._know_all(result, node)
        return result

    def _check(self, func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
        """Note what a graph cannot hold. A module may catch what is raised here."""
        tags = _tags(func)
        # An index has a shape of its own, except for a mask.
        if torch.Tag.dynamic_output_shape in tags and (
            func is not aten.index.Tensor or _has_mask(args[1])
        ):
            self.refused = f"it has shapes that depend on numbers ({func})"
        if torch.Tag.nondeterministic_seeded in tags:
            self.refused = f"it draws random numbers ({func})"
        if torch.Tag.data_dependent_output in tags and any(
            self._find(tensor) is not None for tensor in tensors
        ):
            self.refused = f"it reads numbers that depend on θ or the data ({func})"
            raise RuntimeError(self.refused)

    def _without_writing(self, func: Any, args: tuple[Any, ...]) -> Any:
        # Formulas of derivatives write into results of their own, of which nobody else
        # knows. Where somebody does, the graph is wrong, and its trial tells.
        name, overload = func._schema.name.removeprefix("aten::"), func._overloadname
        pure = getattr(getattr(aten, name.removesuffix("_"), None), overload, None)
        node = self._find(args[0]) if isinstance(args[0], Tensor) else None
        if pure is None or pure is func or node is None or node.op == "placeholder":
            self.refused = f"it writes into a tensor ({func})"
            raise RuntimeError(self.refused)
        return pure

    def _find(self, tensor: Tensor) -> Node | None:
        key, place = getattr(tensor, _TAG, (None, 0))
        return self._nodes[place] if key is self._key else None

    def _is_source(self, tensor: Tensor) -> bool:
        key, place = getattr(tensor, _TAG, (None, 0))
        return key is self._key and self._nodes[place] is None

    def _know(self, tensor: Tensor, node: Node | None) -> None:
        setattr(tensor, _TAG, (self._key, len(self._nodes)))
        self._nodes.append(node)
        if node is not None:
            node.meta["form"] = (tensor.shape, tensor.dtype, tensor.device)

    def _know_all(self, result: Any, node: Node | None) -> None:
        if isinstance(result, Tensor):
            self._know(result, node)
        elif isinstance(result, list | tuple):
            for index, part in enumerate(result):
                if not _tensors_in((part,)):
                    continue
                taken = node
                if node is not None:
                    taken = self.graph.call_function(operator.getitem, (node, index))
                self._know_all(part, taken)

    def _constant(self, tensor: Tensor) -> Node:
        node = self._names.get(id(tensor))
        if node is None:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = tensor
            node = self._names[id(tensor)] = self.graph.create_node("get_attr", name)
            node.meta["form"] = (tensor.shape, tensor.dtype, tensor.device)
        return node


@cache
def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)


@cache
def _tags(func: Any) -> frozenset[torch.Tag]:
    return frozenset(func.tags)


def _tensors_in(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors_in(value)
    return found


def _has_mask(indices: list[Tensor | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
