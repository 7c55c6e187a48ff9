"""Each way to J v and to H v, one function each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, jvp

from flatmin._utils.quiet import ignored
from flatmin.risk.autodiff.compiler import load_compiler
from flatmin.risk.autodiff.isolation import isolated
from flatmin.risk.autodiff.kernels import twice_differentiable
from flatmin.risk.example_sums.scalars import ExampleScalars
from flatmin.risk.example_sums.sums import ExampleSums
from flatmin.risk.failures import NotTaken
from flatmin.risk.products.double_backward import DoubleBackward

__all__ = ["HESSIANS", "JACOBIANS"]


# Numbers an output up to which J v is taken from rows, one sweep a number.
_MOST_ROWS = 64


def _forward(
    point: DoubleBackward, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return the derivative of a function of θ along v, by forward mode."""

    def along(v: Tensor) -> Tensor:
        point.model.bind(point.theta)
        theta = point.theta.to(point.model.dtype)
        # PyTorch warns of a deprecated part of its own when forward mode first loads.
        with twice_differentiable(point.model.module), ignored(DeprecationWarning):
            product: Tensor = isolated(lambda: jvp(function, (theta,), (v,)))[1]
        # Parameters that are reached past θ leave a graph.
        return product.detach()

    return along


def _jvp_forward(_sums: ExampleSums, point: DoubleBackward, v: Tensor) -> Tensor:
    X = point.chunk.X
    return _forward(point, lambda theta: point.model.functional(theta, X))(v)


def _jvp_by_rows(sums: ExampleSums, point: DoubleBackward, v: Tensor) -> Tensor:
    if point.model.normalises_batch:
        raise NotTaken("there are no rows with the statistics of a batch")
    shape = point.outputs.shape
    if shape[1:].numel() > _MOST_ROWS:
        raise ValueError(f"an output of more than {_MOST_ROWS} numbers")
    point.model.bind(point.theta)
    X, step = point.chunk.X, sums.row_chunk_size
    columns = []
    for i in range(shape[1:].numel()):
        number = partial(_ith_number, i)
        parts = [
            sums.rows(ExampleScalars(X[start : start + step], (), number)) @ v
            for start in range(0, len(X), step)
        ]
        columns.append(torch.cat(parts))
    return torch.stack(columns, 1).view(shape)


def _ith_number(i: int, outputs: Tensor) -> Tensor:
    return outputs.reshape(len(outputs), -1)[:, i]


def _jvp_by_pullback(_sums: ExampleSums, point: DoubleBackward, v: Tensor) -> Tensor:
    return point.jvp(v)


def _hvp_forward(point: DoubleBackward, v: Tensor) -> Tensor:
    load_compiler()
    chunk = point.chunk

    def total(theta: Tensor) -> Tensor:
        losses = point.loss.per_example(point.model.functional(theta, chunk.X), chunk.y)
        return chunk.weigh(losses).sum()

    return _forward(point, grad(total))(v)


# The pullback is prepared once, and then takes half as long as forward mode, which runs
# the network again for each v.
JACOBIANS: dict[str, Callable[[ExampleSums, DoubleBackward, Tensor], Tensor]] = {
    "pullback": _jvp_by_pullback,
    "forward mode": _jvp_forward,
    "rows": _jvp_by_rows,
}


HESSIANS: dict[str, Callable[[DoubleBackward, Tensor], Tensor]] = {
    "double backward": DoubleBackward.hvp,
    "forward over backward": _hvp_forward,
}
