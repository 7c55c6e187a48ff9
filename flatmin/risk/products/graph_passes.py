"""What is taken out of the graph of a derivative before it is used.

It holds what automatic differentiation did, and that is more than what has to be
computed. Every pass keeps the values as they are, up to the sign of a zero. The graph
must be free of mutations.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, Node

__all__ = ["alike", "simplify"]

aten = torch.ops.aten


def simplify(graph: Graph) -> None:
    """Apply all passes, in place.

    Parameters
    ----------
    graph : torch.fx.Graph
        Of ATen calls, as :func:`~flatmin.risk.products.recorder.record` makes it.
    """
    loosen_views(graph)
    drop_copies(graph)
    fold_zeros(graph)
    share_repeats(graph)
    trim_convolutions(graph)


def loosen_views(graph: Graph) -> None:
    """Turn every view into a reshape, which takes any strides.

    Strides follow from those of the inputs and from kernels' choices; a pass that
    leaves out a copy changes them.

    Parameters
    ----------
    graph : torch.fx.Graph
    """
    for node in graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default


def drop_copies(graph: Graph) -> None:
    """Leave out what hands its argument through: aliases, and copies to other strides.

    Forward mode copies a tangent whenever its strides differ from its primal's, which
    costs more than a kernel that reads the strides as they are.

    Parameters
    ----------
    graph : torch.fx.Graph
    """
    for node in list(graph.nodes):
        if node.target in (aten.alias.default, aten.detach.default) or (
            node.target in _SAME_SHAPE and alike(node.args[0], node)
        ):
            _replace(node, node.args[0])
        elif node.target is aten.copy.default and alike(node.args[1], node):
            _replace(node, node.args[1])
        elif node.target is aten.t.default and node.args[0].target is aten.t.default:
            _replace(node, node.args[0].args[0])
    graph.eliminate_dead_code()


def fold_zeros(graph: Graph) -> None:
    """Leave out products with, and sums of, what is known to be zero.

    The data do not depend on θ, and forward mode writes their tangents as tensors of
    zeros, with real convolutions of them.

    Parameters
    ----------
    graph : torch.fx.Graph
    """
    zeros: set[Node] = set()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _SOURCES_OF_ZEROS or _is_zero(node, zeros):
            zeros.add(node)
        elif node.target in (aten.add.Tensor, aten.sub.Tensor):
            left, right = node.args[:2]
            if right in zeros and alike(left, node):
                _replace(node, left)
            elif (
                left in zeros
                and node.target is aten.add.Tensor
                and not node.kwargs
                and alike(right, node)
            ):
                _replace(node, right)
    graph.eliminate_dead_code()


def share_repeats(graph: Graph) -> None:
    """Compute once what is computed twice: forward and reverse mode run the network.

    Parameters
    ----------
    graph : torch.fx.Graph
    """
    first: dict[tuple[object, ...], Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
        if key in first:
            _replace(node, first[key])
        else:
            first[key] = node


def trim_convolutions(graph: Graph) -> None:
    """Ask the backward convolution for those gradients only that are used.

    The gradient of the weights, which makes up the better part of a gradient, is not
    needed to differentiate it.

    Parameters
    ----------
    graph : torch.fx.Graph
    """
    for node in graph.nodes:
        if node.target is aten.convolution_backward.default:
            used = {user.args[1] for user in node.users}
            wanted = [want and i in used for i, want in enumerate(node.args[-1])]
            node.args = (*node.args[:-1], wanted)
    graph.eliminate_dead_code()


_SAME_SHAPE = (
    aten.expand.default,
    aten.reshape.default,
    aten._to_copy.default,
)

_SOURCES_OF_ZEROS = (
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten._new_zeros_with_same_feature_meta.default,
)

# Zero where their first argument is.
_LINEAR_IN_FIRST = (
    aten._to_copy.default,
    aten.avg_pool2d.default,
    aten.clone.default,
    aten.div.Tensor,
    aten.expand.default,
    aten.gather.default,
    aten.max_pool2d_with_indices_backward.default,
    aten.mul.Scalar,
    aten.neg.default,
    aten.permute.default,
    aten.reshape.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.t.default,
    aten.threshold_backward.default,
    aten.transpose.int,
    aten.unsqueeze.default,
)

# Zero where one of their first two arguments is.
_BILINEAR = (aten.bmm.default, aten.mm.default, aten.mul.Tensor)


def _is_zero(node: Node, zeros: set[Node]) -> bool:
    arguments = node.args
    if node.target is operator.getitem:
        return _is_zero_gradient(arguments[0], arguments[1], zeros)
    if node.target is aten.copy.default:
        return arguments[1] in zeros
    if node.target is aten.convolution.default:
        return arguments[2] is None and not zeros.isdisjoint(arguments[:2])
    if node.target in _BILINEAR:
        return any(a in zeros for a in arguments[:2] if isinstance(a, Node))
    return node.target in _LINEAR_IN_FIRST and arguments[0] in zeros


def _is_zero_gradient(node: object, index: object, zeros: set[Node]) -> bool:
    """Say whether one of the results of a backward convolution is zero."""
    if not isinstance(node, Node):
        return False
    if node.target is not aten.convolution_backward.default:
        return False
    gradient, inputs, weight = node.args[:3]
    factor = {0: weight, 1: inputs}.get(index)  # type: ignore[call-overload]
    return gradient in zeros or factor in zeros


def _replace(node: Node, by: object) -> None:
    node.replace_all_uses_with(by)  # type: ignore[arg-type]
    node.graph.erase_node(node)


def alike(one: object, other: Node) -> bool:
    """Say whether two values have the same shape, dtype and device.

    Parameters
    ----------
    one : object
        A number is like no tensor.
    other : torch.fx.Node

    Returns
    -------
    bool
    """
    if not isinstance(one, Node):
        return False
    form = one.meta.get("form")
    return form is not None and form == other.meta.get("form")
