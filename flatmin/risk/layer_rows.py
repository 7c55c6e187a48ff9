"""Per-example gradients of one layer's parameters, some examples at a time.

Letters: n examples, t positions (of a sequence or an image), i inputs, o outputs. A
row is the gradient of one example in one parameter, in an order of its own, which
``restore`` turns into the parameter's; sums over examples are restored once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatmin.risk.layer_calls import LayerCall

__all__ = ["LAYER_ROWS", "ParameterUse", "looked_up", "uses_of"]


@dataclass(frozen=True)
class ParameterUse:
    """How one call of a layer depends on one of its parameters."""

    call: LayerCall
    rows: Callable[[LayerCall], Tensor]  # of some examples, (n, P)
    restore: Callable[[Tensor], Tensor] = lambda sums: sums  # (..., P) to row-major

    def part(self, start: int, stop: int) -> Tensor:
        """Return the rows of examples ``start`` to ``stop``, shape (n, P)."""
        return self.rows(self._examples(start, stop))

    def part_of_batches(self, start: int, stop: int, m: int) -> Tensor:
        """Return the sums of the rows of m examples each, shape (n / m, P)."""
        call = self._examples(start, stop)
        if type(call.module) is nn.Linear:  # a batch is a longer sequence
            whole = LayerCall(
                call.module,
                call.input.unflatten(0, (-1, m)),
                call.slope.unflatten(0, (-1, m)),
            )
            return self.rows(whole)
        rows = self.rows(call)
        return rows.view(-1, m, rows.shape[1]).sum(1)

    @property
    def n_numbers(self) -> int:
        """How many numbers the rows of one example, and the way to them, take."""
        module: Any = self.call.module
        size: int = module.weight.numel()
        given, slope = self.call.input[0].numel(), self.call.slope[0].numel()
        if self.rows is _convolution_weight:  # the patches
            n_positions = slope // module.out_channels
            given = n_positions * module.groups * module.weight[0].numel()
        return size + given + slope

    def _examples(self, start: int, stop: int) -> LayerCall:
        call, part = self.call, slice(start, stop)
        return LayerCall(call.module, call.input[part], call.slope[part])

    @property
    def is_outer(self) -> bool:
        """Whether a row is the outer product of an example's slope and input."""
        return self.rows is _linear_weight and self.call.input.ndim == 2

    @property
    def is_sparse(self) -> bool:
        """Whether a row is zero but for the tokens of the example."""
        return self.rows is _embedding_weight


def uses_of(call: LayerCall) -> dict[str, ParameterUse]:
    """Return the uses of a layer's parameters by name.

    Parameters
    ----------
    call : LayerCall
        Of a layer of a type in :data:`LAYER_ROWS`.

    Returns
    -------
    dict of str to ParameterUse
    """
    uses = LAYER_ROWS[type(call.module)](call)
    return {name: uses[name] for name, _ in call.module.named_parameters()}


def _linear(call: LayerCall) -> dict[str, ParameterUse]:
    return {
        "weight": ParameterUse(call, _linear_weight),
        "bias": ParameterUse(call, _sum_of_last),
    }


def _linear_weight(call: LayerCall) -> Tensor:
    slopes = call.slope.flatten(1, -2) if call.slope.ndim > 2 else call.slope[:, None]
    inputs = call.input.flatten(1, -2) if call.input.ndim > 2 else call.input[:, None]
    return torch.bmm(slopes.mT, inputs).flatten(1)  # n o i


def _sum_of_last(call: LayerCall) -> Tensor:
    """Return the slopes summed over positions, channels last: n o."""
    return call.slope if call.slope.ndim == 2 else call.slope.flatten(1, -2).sum(1)


def _sum_of_channels(call: LayerCall) -> Tensor:
    """Return the slopes summed over positions, channels first: n o."""
    return call.slope if call.slope.ndim == 2 else call.slope.flatten(2).sum(2)


def _convolution(call: LayerCall) -> dict[str, ParameterUse]:
    module: Any = call.module
    o, i = module.weight.shape[:2]

    def restore(sums: Tensor) -> Tensor:
        blocks = sums.reshape(*sums.shape[:-1], o, -1, i)
        return blocks.mT.flatten(-3)

    return {
        "weight": ParameterUse(call, _convolution_weight, restore),
        "bias": ParameterUse(call, _sum_of_channels),
    }


def _convolution_weight(call: LayerCall) -> Tensor:
    """Return the slopes times the patches they saw: n o (kernel i)."""
    module: Any = call.module
    images, slopes = _padded(call.input, module), call.slope
    stride, dilation = module.stride, module.dilation
    if slopes.ndim == 3:  # one dimension is two, the first of size one
        images, slopes = images.unsqueeze(2), slopes.unsqueeze(2)
        stride, dilation = (1, *stride), (1, *dilation)
    kernel = (1, *module.kernel_size)[-2:]
    n, o, height, width = slopes.shape
    groups = module.groups
    by_example, by_channel, by_row, by_column = images.stride()
    patches = images.as_strided(
        (n, groups, height, width, *kernel, images.shape[1] // groups),
        (
            by_example,
            by_channel * (images.shape[1] // groups),
            by_row * stride[0],
            by_column * stride[1],
            by_row * dilation[0],
            by_column * dilation[1],
            by_channel,
        ),
        images.storage_offset(),
    )
    patches = patches.reshape(n * groups, height * width, -1)  # (n g) t (kernel i)
    # Channels last, as the kernels before have left them: then nothing is copied.
    slopes = slopes.movedim(1, -1).reshape(n, height * width, groups, o // groups)
    slopes = slopes.permute(0, 2, 3, 1).reshape(n * groups, o // groups, -1)
    return torch.bmm(slopes, patches).view(n, -1)


def _padded(images: Tensor, module: Any) -> Tensor:
    """Return a convolution's input with the padding that the layer adds."""
    amounts = list(module._reversed_padding_repeated_twice)
    if not any(amounts):
        return images
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(images, amounts, mode=mode)


def _embedding(call: LayerCall) -> dict[str, ParameterUse]:
    return {"weight": ParameterUse(call, _embedding_weight)}


def _embedding_weight(call: LayerCall) -> Tensor:
    tokens, slopes = looked_up(call)
    module: Any = call.module
    rows = slopes.new_zeros(len(tokens), *module.weight.shape)
    where = tokens.unsqueeze(-1).expand_as(slopes)
    return rows.scatter_add_(1, where, slopes).flatten(1)


def looked_up(call: LayerCall) -> tuple[Tensor, Tensor]:
    """Return which rows of an Embedding each example read, and their gradients.

    Parameters
    ----------
    call : LayerCall

    Returns
    -------
    tokens : Tensor of shape (n, t)
    slopes : Tensor of shape (n, t, o)
        Zero at the padding index.
    """
    module: Any = call.module
    tokens = call.input.flatten(1) if call.input.ndim > 1 else call.input[:, None]
    slopes = call.slope.reshape(*tokens.shape, -1)
    if module.padding_idx is not None:
        slopes = slopes * (tokens != module.padding_idx).unsqueeze(-1)
    return tokens, slopes


def _layer_norm(call: LayerCall) -> dict[str, ParameterUse]:
    def weight(call: LayerCall) -> Tensor:
        module: Any = call.module
        normal = F.layer_norm(call.input, module.normalized_shape, eps=module.eps)
        return positions(call.slope * normal)

    def positions(values: Tensor) -> Tensor:
        module: Any = call.module
        size = module.weight.numel()
        return values.reshape(len(values), -1, size).sum(1)

    return {
        "weight": ParameterUse(call, weight),
        "bias": ParameterUse(call, lambda call: positions(call.slope)),
    }


def _group_norm(call: LayerCall) -> dict[str, ParameterUse]:
    def weight(call: LayerCall) -> Tensor:
        module: Any = call.module
        normal = F.group_norm(call.input, module.num_groups, eps=module.eps)
        return _sum_of_channels(LayerCall(module, normal, call.slope * normal))

    return {
        "weight": ParameterUse(call, weight),
        "bias": ParameterUse(call, _sum_of_channels),
    }


def _batch_norm(call: LayerCall) -> dict[str, ParameterUse]:
    def weight(call: LayerCall) -> Tensor:
        module: Any = call.module  # in eval mode
        mean, variance = module.running_mean, module.running_var
        normal = F.batch_norm(call.input, mean, variance, eps=module.eps)
        return _sum_of_channels(LayerCall(module, normal, call.slope * normal))

    return {
        "weight": ParameterUse(call, weight),
        "bias": ParameterUse(call, _sum_of_channels),
    }


# By exact type: a subclass may do something else.
LAYER_ROWS: Mapping[type[nn.Module], Callable[[LayerCall], dict[str, ParameterUse]]] = {
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Linear: _linear,
}
