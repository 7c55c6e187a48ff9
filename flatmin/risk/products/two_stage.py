"""The graph of a function that is linear in one argument, cut in two.

What does not depend on the direction is computed once a θ (*prepare*), what does is
computed once a direction (*use*). One graph serves every θ and every chunk of data of
one shape. Making one costs as much as several gradients, so ``torch.func.linearize``,
which makes one at every θ, does not pay (and is wrong for recurrent layers from its
second call, torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from flatmin._utils.quiet import ignored
from flatmin.risk.autodiff.isolation import isolated
from flatmin.risk.products.graph_passes import simplify

__all__ = ["TwoStage", "two_stage_graph"]


@dataclass(frozen=True)
class TwoStage:
    """The two halves of ``f(theta, direction, *data)``."""

    prepare: Callable[..., tuple[Tensor, ...]]  # (theta, *data) -> kept
    use: Callable[..., Tensor]  # (*kept, direction) -> f
    constants: tuple[Tensor, ...]  # what f reads besides its arguments


def two_stage_graph(
    function: Callable[..., Tensor], theta: Tensor, direction: Tensor, *data: Tensor
) -> TwoStage:
    """Make the graph of a function, simplify it, and cut it.

    Parameters
    ----------
    function : callable
        ``function(theta, direction, *data)`` returns a Tensor and is linear in
        ``direction``. Tensors that it holds otherwise are constants of the graph.
    theta : Tensor of shape (D,)
        For shapes and dtypes, as are the next two; their values are not used later.
        One thread at a time may do so: it patches ``torch.nn.Module`` meanwhile.
    direction : Tensor
    *data : Tensor

    Returns
    -------
    TwoStage

    Raises
    ------
    RuntimeError
        If it draws random numbers, which a graph would draw anew at each use, or has
        shapes that depend on numbers: Python's branches on them would be those of the
        first data. Where PyTorch makes no graph, its own error.
    """
    # Without mutations the nodes can be moved from one half to the other.
    pure = functionalize(function, remove="mutations")
    # PyTorch warns of deprecated parts of its own.
    with ignored(), torch.enable_grad():
        whole = isolated(lambda: _graph_of(pure, theta, direction, *data))
    simplify(whole.graph)
    for node in whole.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise RuntimeError(f"it draws random numbers ({node.target})")
    return _cut(whole)


def _graph_of(function: Callable[..., Tensor], *args: Tensor) -> GraphModule:
    with _Shapes() as shapes:
        whole: GraphModule = make_fx(function)(*args)
    if shapes.found is not None:
        raise RuntimeError(f"it has shapes that depend on numbers ({shapes.found})")
    return whole


class _Shapes(TorchDispatchMode):
    """Notes what returns as many numbers as it finds, also where only those count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: str | None = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # An index has a shape of its own, except for a mask.
        if torch.Tag.dynamic_output_shape in func.tags and (
            func is not torch.ops.aten.index.Tensor or _has_mask(args[1])
        ):
            self.found = str(func)
        return func(*args, **(kwargs or {}))


def _has_mask(indices: list[Tensor | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _cut(whole: GraphModule) -> TwoStage:
    placeholders = [node for node in whole.graph.nodes if node.op == "placeholder"]
    direction = placeholders[1]
    depends = {direction}
    for node in whole.graph.nodes:
        if any(argument in depends for argument in node.all_input_nodes):
            depends.add(node)
    (output,) = (node for node in whole.graph.nodes if node.op == "output")
    kept = [
        node
        for node in whole.graph.nodes
        if node not in depends
        and node.op != "get_attr"
        and (node.users.keys() & depends or node is output.args[0])
    ]

    prepare, copied = Graph(), dict[Node, Node]()
    for node in whole.graph.nodes:
        if node not in depends and node is not output:
            copied[node] = prepare.node_copy(node, copied.__getitem__)
    prepare.output(tuple(copied[node] for node in kept))
    prepare.eliminate_dead_code()

    use, copied = Graph(), dict[Node, Node]()
    for node in (*kept, direction):
        copied[node] = use.placeholder(node.name)
    for node in whole.graph.nodes:
        needed = node.op == "get_attr" or node in depends
        if needed and node is not output and node not in copied:
            copied[node] = use.node_copy(node, copied.__getitem__)
    use.output(copied[output.args[0]])
    use.eliminate_dead_code()
    constants = tuple(
        getattr(whole, node.target)
        for node in whole.graph.nodes
        if node.op == "get_attr"
    )
    return TwoStage(_compiled(prepare, whole), _compiled(use, whole), constants)


def _compiled(graph: Graph, whole: GraphModule) -> Callable[..., Any]:
    """Return a graph as a function of its arguments."""
    # No GraphModule is made: it and its graph refer to each other, so that the garbage
    # collector alone would free their memory and the constants'.
    code = graph.python_code("self")
    names = [node.target for node in graph.nodes if node.op == "get_attr"]
    constants = SimpleNamespace(**{name: getattr(whole, name) for name in names})
    scope = dict(code.globals)
    exec(compile(code.src, "<a graph of flatmin>", "exec"), scope)
    return partial(scope.pop("forward"), constants)
