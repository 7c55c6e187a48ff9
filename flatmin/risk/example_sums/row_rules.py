"""How the rows of a parameter follow from the input and the slope of a function.

A row is the gradient of one example's scalar in one parameter, flat. A rule may give it
in an order of its own, which is cheap to make; ``restore`` then puts it into the
parameter's, and sums over examples are restored once. The slope is the gradient in the
function's output. Letters: n examples, t positions (of a sequence or an image), i
inputs, o outputs. For a linear map y = W x + b with slope s the row of W is Σ_t s xᵀ
and that of b is Σ_t s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flatmin.risk.example_sums.convolution_rules import convolution_rules
from flatmin.risk.example_sums.factors import Factors
from flatmin.risk.example_sums.row_rule import InputAndRules, RowRule, sum_of_channels
from flatmin.risk.failures import UnsupportedLayers

__all__ = [
    "ROW_RULES",
    "addmm_rules",
    "alias",
    "copied_rows",
    "linear_rules",
]


def linear_rules(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> InputAndRules:
    """Read the arguments of ``torch.nn.functional.linear``.

    Parameters
    ----------
    input : Tensor of shape (n, \\*positions, i)
    weight : Tensor of shape (o, i)
    bias : Tensor of shape (o,), default=None

    Returns
    -------
    input : Tensor
    parameters : list of (Tensor or None, RowRule)

    Raises
    ------
    UnsupportedLayers
        If the weight is no matrix.
    """
    if weight.ndim != 2:
        raise UnsupportedLayers("a product with a parameter that is no matrix")
    return input, [
        (
            weight,
            RowRule(
                _outer_products,
                batch_sums=_outer_products_of_batches,
                factors=_factors,
            ),
        ),
        (bias, RowRule(_sum_of_last)),
    ]


def copied_rows(_input: Tensor, slope: Tensor) -> Tensor:
    """Return the rows of a parameter of which every example has a copy."""
    return slope.reshape(len(slope), -1)


def alias(parameter: Any) -> Any:
    """Return a leaf in place of a parameter, which then has no gradient from here.

    Parameters
    ----------
    parameter : Tensor or None

    Returns
    -------
    Tensor or None
    """
    return None if parameter is None else parameter.detach().requires_grad_()


def _factors(input: Tensor, slope: Tensor) -> Factors:
    """Return inputs, n t i, and slopes, n t o, with all positions on one axis."""
    slopes = slope.flatten(1, -2) if slope.ndim > 2 else slope[:, None]
    inputs = input.flatten(1, -2) if input.ndim > 2 else input[:, None]
    return Factors(inputs, slopes)


def _outer_products(input: Tensor, slope: Tensor) -> Tensor:
    inputs, slopes = _factors(input, slope)
    return torch.bmm(slopes.mT, inputs).flatten(1)  # n o i


def _outer_products_of_batches(input: Tensor, slope: Tensor, m: int) -> Tensor:
    """Return the sums over m examples each: their positions are joined."""
    return _outer_products(input.unflatten(0, (-1, m)), slope.unflatten(0, (-1, m)))


def _sum_of_last(_input: Tensor, slope: Tensor) -> Tensor:
    """Return the slopes summed over positions, channels last: n o."""
    return slope if slope.ndim == 2 else slope.flatten(1, -2).sum(1)


def _matmul_rules(input: Tensor, other: Tensor) -> InputAndRules:
    if other.ndim != 2:
        raise UnsupportedLayers("a product with a parameter that is no matrix")

    def restore(sums: Tensor) -> Tensor:
        transposed: Tensor = sums.unflatten(-1, other.mT.shape).mT
        return transposed.flatten(-2)

    return input, [
        (
            other,
            RowRule(
                _outer_products,
                restore,
                _outer_products_of_batches,
                factors=_factors,
                order="i o",
            ),
        )
    ]


def addmm_rules(input: Tensor, bias: Tensor, other: Tensor) -> InputAndRules:
    """Read the arguments of ``torch.addmm(bias, input, other)``, with a first axis n.

    Parameters
    ----------
    input : Tensor of shape (n, t, i)
    bias : Tensor of shape (o,)
    other : Tensor of shape (i, o)

    Returns
    -------
    input : Tensor
    parameters : list of (Tensor, RowRule)
    """
    rules = _matmul_rules(input, other)[1]
    return input, [*rules, (bias, RowRule(_sum_of_last))]


def _embedding_rules(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> InputAndRules:
    if max_norm is not None or scale_grad_by_freq:
        raise UnsupportedLayers("an embedding that rescales")
    n_words = len(weight)
    nonzero_blocks = partial(
        _nonzero_blocks, padding=None if padding_idx is None else padding_idx % n_words
    )

    def rows(input: Tensor, slope: Tensor) -> Tensor:
        tokens, slopes = nonzero_blocks(input, slope)
        rows = slopes.new_zeros(len(tokens), n_words, slopes.shape[-1])
        where = tokens.unsqueeze(-1).expand_as(slopes)
        return rows.scatter_add_(1, where, slopes).flatten(1)

    def factors(input: Tensor, slope: Tensor) -> Factors:
        tokens, slopes = nonzero_blocks(input, slope)
        return Factors(slopes, tokens)

    rule = RowRule(rows, nonzero_blocks=nonzero_blocks, factors=factors)
    return input, [(weight, rule)]


def _nonzero_blocks(
    input: Tensor, slope: Tensor, padding: int | None
) -> tuple[Tensor, Tensor]:
    """Return the tokens, n t, and their gradients, n t o, zero at the padding."""
    tokens = input.flatten(1) if input.ndim > 1 else input[:, None]
    slopes = slope.reshape(*tokens.shape, -1)
    if padding is not None:
        slopes = slopes * (tokens != padding).unsqueeze(-1)
    return tokens, slopes


def _layer_norm_rules(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> InputAndRules:
    normalise = partial(F.layer_norm, normalized_shape=normalized_shape, eps=eps)
    return input, [
        (weight, RowRule(partial(_normal_sums, normalise, len(normalized_shape)))),
        (bias, RowRule(partial(_position_sums, len(normalized_shape)))),
    ]


def _rms_norm_rules(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> InputAndRules:
    normalise = partial(F.rms_norm, normalized_shape=normalized_shape, eps=eps)
    rows = partial(_normal_sums, normalise, len(normalized_shape))
    return input, [(weight, RowRule(rows))]


def _position_sums(n_last: int, _input: Tensor, slope: Tensor) -> Tensor:
    """Return the slopes summed over all but the last dimensions."""
    flat = slope.flatten(slope.ndim - n_last)
    return flat if flat.ndim == 2 else flat.flatten(1, -2).sum(1)


def _normal_sums(
    normalise: Callable[[Tensor], Tensor], n_last: int, input: Tensor, slope: Tensor
) -> Tensor:
    return _position_sums(n_last, input, slope * normalise(input))


def _group_norm_rules(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> InputAndRules:
    return _channel_norm(
        input, weight, bias, partial(F.group_norm, num_groups=num_groups, eps=eps)
    )


def _batch_norm_rules(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> InputAndRules:
    if training:
        raise UnsupportedLayers("batch_norm with statistics of its input")
    normalise = partial(
        F.batch_norm, running_mean=running_mean, running_var=running_var, eps=eps
    )
    return _channel_norm(input, weight, bias, normalise)


def _channel_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalise: Callable[[Tensor], Tensor],
) -> InputAndRules:
    def rows(input: Tensor, slope: Tensor) -> Tensor:
        return sum_of_channels(input, slope * normalise(input))

    return input, [(weight, RowRule(rows)), (bias, RowRule(sum_of_channels))]


def _prelu_rules(input: Tensor, weight: Tensor) -> InputAndRules:
    def rows(input: Tensor, slope: Tensor) -> Tensor:
        sums = sum_of_channels(input, slope * input.clamp(max=0))
        return sums if weight.numel() > 1 else sums.sum(1, keepdim=True)

    return input, [(weight, RowRule(rows))]


# By function: whatever module calls it, and whatever hooks do before and after.
ROW_RULES: Mapping[Any, Callable[..., InputAndRules]] = {
    F.linear: linear_rules,
    torch.matmul: _matmul_rules,
    Tensor.matmul: _matmul_rules,
    torch.conv1d: convolution_rules,
    torch.conv2d: convolution_rules,
    F.embedding: _embedding_rules,
    F.layer_norm: _layer_norm_rules,
    F.rms_norm: _rms_norm_rules,
    F.group_norm: _group_norm_rules,
    F.batch_norm: _batch_norm_rules,
    torch.prelu: _prelu_rules,
}
