"""The gradient as a function that may be differentiated in forward mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._functorch.eager_transforms import (
    _create_differentiable,
    _undo_create_differentiable,
    _wrap_all_tensors,
    grad_increment_nesting,
)

__all__ = ["pull_back", "with_its_graph"]

_WITH_GRAPH = ContextVar("with_graph", default=False)


@contextmanager
def with_its_graph() -> Iterator[None]:
    """Let :func:`pull_back` keep a graph of the backward pass, as PyTorch does.

    Where gradients are on, some derivatives are computed by functions that have
    derivatives themselves, also in forward mode: that of group norm is one.
    """
    token = _WITH_GRAPH.set(True)
    try:
        yield
    finally:
        _WITH_GRAPH.reset(token)


def pull_back(
    function: Callable[[Tensor], Tensor],
    theta: Tensor,
    cotangents: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return Jᵀc, as by ``torch.func.vjp``.

    That one keeps a graph of the backward pass, to be differentiated in reverse mode
    again, and imports Dynamo and Inductor (torch 2.13). Here the pass frees what it has
    read, but for :func:`with_its_graph`.

    Parameters
    ----------
    function : callable
        Of θ; its result has the Jacobian J.
    theta : Tensor of shape (D,)
    cotangents : callable
        Takes the result of the function, and returns c of the same shape.

    Returns
    -------
    Tensor of shape (D,)
    """
    with grad_increment_nesting() as level, torch.enable_grad():
        inner = _create_differentiable(_wrap_all_tensors(theta, level), level)
        outputs = function(inner)
        c = cotangents(_undo_create_differentiable(outputs, level))
        if outputs.requires_grad:
            (pulled,) = torch.autograd.grad(
                outputs,
                inner,
                c,
                create_graph=_WITH_GRAPH.get(),
                allow_unused=True,
                materialize_grads=True,
            )
        else:
            pulled = torch.zeros_like(inner)
        result: Tensor = _undo_create_differentiable(pulled, level)
        return result
