"""Fewer passes over memory: a sum is added up where its first term lies.

The graph of a derivative is full of sums of products, and each sum, and each product in
it, asks for memory of its own. On a CPU that takes as long as the products themselves
where a layer is narrow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from flatmin.risk.products.graph_passes import alike

__all__ = ["fuse"]

aten = torch.ops.aten


def fuse(graph: Graph) -> None:
    """Join products and the sums that they go into, and overwrite what is read once.

    Values stay as they are, up to rounding. What the graph is given, what it returns
    and what is read twice is never written to.

    Parameters
    ----------
    graph : torch.fx.Graph
        Free of mutations, in place. ``meta["form"]`` of its nodes is known, of its
        placeholders too.
    """
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor and not node.kwargs:
            _join(node)
    for node in graph.nodes:
        _overwrite(node)


# By how a product is called: a sum that it is joined to, in new memory and in place.
_SUMS = {
    aten.mm.default: (aten.addmm.default, aten.addmm_.default),
    aten.bmm.default: (aten.baddbmm.default, aten.baddbmm_.default),
    aten.mul.Tensor: (aten.addcmul.default, aten.addcmul_.default),
}
_IN_PLACE = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.div.Scalar: aten.div_.Scalar,
    aten.div.Tensor: aten.div_.Tensor,
    aten.mul.Scalar: aten.mul_.Scalar,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.neg.default: aten.neg_.default,
    aten.sub.Tensor: aten.sub_.Tensor,
}
_COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)
# Their results are memory of their own, which nobody else knows.
_NEW = {
    *_SUMS,
    *_IN_PLACE,
    *_IN_PLACE.values(),
    *(target for pair in _SUMS.values() for target in pair),
    aten.convolution.default,
    aten.gelu_backward.default,
    aten.tanh_backward.default,
    aten.threshold_backward.default,
}


def _join(node: Node) -> None:
    """Make a sum, and one of its terms that is a product, a single call."""
    first, second = node.args
    if first is second:
        return
    for total, term in ((first, second), (second, first)):
        if not (isinstance(total, Node) and isinstance(term, Node)):
            continue
        if not (_is_read_once(term) and alike(term, node)):
            continue
        if _join_product(node, total, term):
            node.graph.erase_node(term)
            return


def _join_product(node: Node, total: Node, term: Node) -> bool:
    factors: Any = term.args
    if term.target is aten.mul.Scalar or (
        term.target is aten.mul.Tensor and not isinstance(factors[1], Node)
    ):
        node.args, node.kwargs = (total, factors[0]), {"alpha": factors[1]}
        return True
    if term.target not in _SUMS or not all(_has_dtype(f, node) for f in factors):
        return False
    anew, in_place = _SUMS[term.target]
    if alike(total, node):
        node.target = in_place if _is_ours(total) else anew
    elif term.target is aten.mm.default and _is_bias(total, node):
        node.target = anew
    else:
        return False
    node.args = (total, *factors)
    return True


def _overwrite(node: Node) -> None:
    """Write a result over an argument that is not read again."""
    if node.target not in _IN_PLACE:
        return
    arguments = node.args
    if not _may_be_written(arguments[0], node):
        swaps = node.target in _COMMUTATIVE and not node.kwargs
        if not (swaps and _may_be_written(arguments[1], node)):
            return
        node.args = (arguments[1], arguments[0])
    node.target = _IN_PLACE[node.target]


def _may_be_written(argument: object, node: Node) -> bool:
    is_ours = isinstance(argument, Node) and _is_ours(argument)
    return is_ours and alike(argument, node) and node.args.count(argument) == 1


def _is_ours(node: Node) -> bool:
    return node.target in _NEW and _is_read_once(node)


def _is_read_once(node: Node) -> bool:
    return len(node.users) == 1


def _form(node: object) -> Any:
    return node.meta.get("form") if isinstance(node, Node) else None


def _has_dtype(factor: object, node: Node) -> bool:
    form = _form(factor)
    return form is not None and form[1:] == _form(node)[1:]


def _is_bias(node: Node, total: Node) -> bool:
    form, whole = _form(node), _form(total)
    return form is not None and form == (whole[0][-1:], *whole[1:])
