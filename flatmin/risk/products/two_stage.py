"""The graph of a function that is linear in one argument, cut in two.

What does not depend on the direction is computed once a θ (*prepare*), what does is
computed once a direction (*use*). One graph serves every θ and every chunk of data of
one shape. Making one costs as much as several gradients, so ``torch.func.linearize``,
which makes one at every θ, does not pay (and is wrong for recurrent layers from its
second call, torch 2.13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import Graph, Node

from flatmin._utils.quiet import ignored
from flatmin.risk.autodiff.isolation import isolated
from flatmin.risk.autodiff.pushforward import load_formulas
from flatmin.risk.products.fusion import fuse
from flatmin.risk.products.graph_passes import simplify
from flatmin.risk.products.recorder import record

__all__ = ["TwoStage", "as_function", "two_stage_graph"]


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
        try:
            whole, constants = isolated(lambda: record(pure, theta, direction, *data))
        except NotImplementedError:
            load_formulas()
            whole, constants = isolated(lambda: record(pure, theta, direction, *data))
    simplify(whole)
    return _cut(whole, constants)


def _cut(whole: Graph, constants: dict[str, Tensor]) -> TwoStage:
    theta, direction, *data = (n for n in whole.nodes if n.op == "placeholder")
    depends = {direction}
    for node in whole.nodes:
        if any(argument in depends for argument in node.all_input_nodes):
            depends.add(node)
    (output,) = (node for node in whole.nodes if node.op == "output")
    result = output.args[0]
    kept = [
        node
        for node in whole.nodes
        if node not in depends
        and node.op != "get_attr"
        and (node.users.keys() & depends or node is result)
    ]
    return TwoStage(
        _fused(whole, (theta, *data), tuple(kept), constants),
        _fused(whole, (*kept, direction), result, constants),
        tuple(constants.values()),
    )


def _fused(
    whole: Graph, inputs: Sequence[Node], result: Any, constants: Mapping[str, Tensor]
) -> Callable[..., Any]:
    """Return a part of a graph as a function, with its sums and products joined."""
    part, copied = Graph(), dict[Node, Node]()
    for node in inputs:
        copied[node] = part.placeholder(node.name)
        copied[node].meta = dict(node.meta)
    results = result if isinstance(result, tuple) else (result,)
    for node in _between(whole, inputs, results):
        copied[node] = part.node_copy(node, copied.__getitem__)
    found = tuple(copied[node] for node in results)
    part.output(found)
    fuse(part)  # which keeps what is given and returned
    given = [copied[node] for node in inputs]
    return as_function(
        part, given, found if isinstance(result, tuple) else found[0], constants
    )


def _between(
    whole: Graph, inputs: Sequence[Node], results: Sequence[Node]
) -> list[Node]:
    """Return what the results are made of, in order, from the inputs on."""
    given, wanted, found = set(inputs), set(results), []
    for node in reversed(whole.nodes):
        if node in wanted and node not in given:
            wanted.update(node.all_input_nodes)
            found.append(node)
    return found[::-1]


def as_function(
    graph: Graph, inputs: Sequence[Node], result: Any, constants: Mapping[str, Tensor]
) -> Callable[..., Any]:
    """Return the part of a graph between some nodes and others, as a function.

    Parameters
    ----------
    graph : torch.fx.Graph
    inputs : sequence of Node
        The arguments of the function.
    result : Node, or tuple of Node
    constants : mapping of str to Tensor
        By their names in the graph.

    Returns
    -------
    callable
        It lets go of each value behind its last reader.
    """
    # No GraphModule is made: it and its graph refer to each other, so that the garbage
    # collector alone would free their memory and the constants'.
    scope: dict[str, Any] = {"torch": torch, "device": torch.device}
    scope.update(inf=math.inf, nan=math.nan)
    names: dict[Any, str] = {}  # of the functions
    given, wanted = set(inputs), set(result) if isinstance(result, tuple) else {result}
    held = given | wanted  # not to be let go of, or read further down
    lines = [f" return {result}"]
    for node in reversed(graph.nodes):
        if node in given or node not in wanted:
            continue
        if node.op == "get_attr":
            scope[node.name] = constants[node.target]
            continue
        read = [r for r in node.all_input_nodes if r.op != "get_attr"]
        wanted.update(node.all_input_nodes)
        last = [r.name for r in read if r not in held]
        held.update(read)
        name = names.setdefault(node.target, f"function_{len(names)}")
        scope[name] = node.target
        arguments = [f"{argument!r}" for argument in node.args]
        arguments += [f"{key}={value!r}" for key, value in node.kwargs.items()]
        let_go = f"; del {', '.join(last)}" if last else ""
        lines.append(f" {node.name} = {name}({', '.join(arguments)}){let_go}")
    lines.append(f"def part({', '.join(node.name for node in inputs)}):")
    exec(compile("\n".join(reversed(lines)), "<a graph of flatmin>", "exec"), scope)
    part: Callable[..., Any] = scope.pop("part")  # else it would hold itself
    return part
