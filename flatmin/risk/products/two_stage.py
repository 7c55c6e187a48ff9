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
from torch.fx import Graph, Node

from flatmin._utils.quiet import ignored
from flatmin.risk.autodiff.isolation import isolated
from flatmin.risk.products.fusion import fuse
from flatmin.risk.products.graph_passes import simplify
from flatmin.risk.products.recorder import record

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
    direction : Tensor
    *data : Tensor

    Returns
    -------
    TwoStage

    Raises
    ------
    RuntimeError
        As from :func:`~flatmin.risk.products.recorder.record`. Where PyTorch makes no
        graph, its own error.
    """
    # Without mutations the nodes can be moved from one half to the other.
    pure = functionalize(function, remove="mutations")
    # PyTorch warns of deprecated parts of its own.
    with ignored(), torch.enable_grad():
        whole, constants = isolated(lambda: record(pure, theta, direction, *data))
    simplify(whole)
    return _cut(whole, constants)


def _cut(whole: Graph, constants: dict[str, Tensor]) -> TwoStage:
    placeholders = [node for node in whole.nodes if node.op == "placeholder"]
    direction = placeholders[1]
    depends = {direction}
    for node in whole.nodes:
        if any(argument in depends for argument in node.all_input_nodes):
            depends.add(node)
    (output,) = (node for node in whole.nodes if node.op == "output")
    kept = [
        node
        for node in whole.nodes
        if node not in depends
        and node.op != "get_attr"
        and (node.users.keys() & depends or node is output.args[0])
    ]

    prepare, copied = Graph(), dict[Node, Node]()
    for node in whole.nodes:
        if node not in depends and node is not output:
            copied[node] = prepare.node_copy(node, copied.__getitem__)
    prepare.output(tuple(copied[node] for node in kept))
    prepare.eliminate_dead_code()

    use, copied = Graph(), dict[Node, Node]()
    for node in (*kept, direction):
        copied[node] = use.placeholder(node.name)
        copied[node].meta = dict(node.meta)
    for node in whole.nodes:
        needed = node.op == "get_attr" or node in depends
        if needed and node is not output and node not in copied:
            copied[node] = use.node_copy(node, copied.__getitem__)
    use.output(copied[output.args[0]])
    use.eliminate_dead_code()
    return TwoStage(
        _compiled(prepare, constants),
        _compiled(use, constants),
        tuple(constants.values()),
    )


def _compiled(graph: Graph, constants: dict[str, Tensor]) -> Callable[..., Any]:
    """Return a graph as a function of its arguments."""
    fuse(graph)
    # No GraphModule is made: it and its graph refer to each other, so that the garbage
    # collector alone would free their memory and the constants'.
    code = graph.python_code("self")
    names = [node.target for node in graph.nodes if node.op == "get_attr"]
    held = SimpleNamespace(**{name: constants[name] for name in names})
    scope = dict(code.globals)
    exec(compile(code.src, "<a graph of flatmin>", "exec"), scope)
    return partial(scope.pop("forward"), held)
