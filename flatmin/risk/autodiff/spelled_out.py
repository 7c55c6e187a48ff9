"""Functions of PyTorch in terms of others whose derivatives are there, and right.

Each takes the arguments of the function in its name and returns the same numbers. They
stand in for it while a second derivative, or a derivative in forward mode, is taken
(torch 2.13; none of them costs anything otherwise).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SPELLED_OUT"]


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    # No second derivative.
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # w = g v/‖v‖. The second derivative of PyTorch's fused kernel is wrong.
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _sinc(input: Tensor) -> Tensor:
    # The second derivative of PyTorch's own is NaN at 0.
    x = torch.pi * input
    small = x.abs() < 1e-2
    square = x.square()
    series = 1 - square / 6 * (1 - square / 20 * (1 - square / 42))
    safe = torch.where(small, torch.ones_like(x), x)
    return torch.where(small, series, safe.sin() / safe)


def _prod(
    input: Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    # PyTorch's derivatives divide by the factors, of which one can be tiny.
    x = input if dtype is None else input.to(dtype)
    if not x.is_floating_point():
        return torch.prod(x) if dim is None else torch.prod(x, dim, keepdim)
    if x.ndim == 0:
        return x.clone()
    if dim is None:
        x, dim = x.flatten(), 0
    x = x.movedim(dim, 0)
    if len(x) == 0:
        result = x.new_ones(x.shape[1:])
    else:
        while len(x) > 1:
            half = len(x) // 2
            x = torch.cat([x[:half] * x[half : 2 * half], x[2 * half :]])
        result = x[0]
    return result.unsqueeze(dim) if keepdim else result


def _cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    x = input if dtype is None else input.to(dtype)
    if x.ndim == 0 or not x.is_floating_point():
        return torch.cumprod(x, dim)
    x, step = x.movedim(dim, 0), 1
    while step < len(x):  # each becomes the product of twice as many
        x = torch.cat([x[:step], x[step:] * x[:-step]])
        step *= 2
    return x.movedim(0, dim)


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    # The second derivative of PyTorch's own is NaN. Halves are merged, as in a scan.
    if input.ndim == 0:
        return input.clone()
    x, step = input.movedim(dim, 0), 1
    while step < len(x):
        x = torch.cat([x[:step], torch.logaddexp(x[step:], x[:-step])])
        step *= 2
    return x.movedim(0, dim)


def _cdist(
    x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None
) -> Tensor:
    # Its derivatives depend on the number of rows: some have no second one.
    return _norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def _pdist(input: Tensor, p: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(
        len(input), len(input), 1, device=input.device
    ).unbind()
    return _norm(input[first] - input[second], p)


def _norm(differences: Tensor, p: float) -> Tensor:
    """Return norms over the last axis, with the derivative 0 where one is zero."""
    if p == 0:
        return (differences.detach() != 0).sum(-1).to(differences.dtype)
    zero = (differences.detach() == 0).all(-1, keepdim=True)
    safe = torch.where(zero, torch.ones_like(differences), differences)
    norms: Tensor = torch.linalg.vector_norm(safe, p, -1)
    return torch.where(zero.squeeze(-1), torch.zeros_like(norms), norms)


def _lp_pool(n_dims: int) -> Callable[..., Tensor]:
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n_dims - 1]

    def lp_pool(
        input: Tensor,
        norm_type: float,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
    ) -> Tensor:
        # (Σ xᵖ)^(1/p), where PyTorch's derivative multiplies 0 by infinity: an empty
        # window counts as a constant.
        sizes = [kernel_size] * n_dims if isinstance(kernel_size, int) else kernel_size
        number = torch.Size(sizes).numel()
        average = pool(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
        sums = average * number
        zero = sums.detach() == 0
        roots = torch.where(zero, torch.ones_like(sums), sums).pow(1 / norm_type)
        return torch.where(zero, torch.zeros_like(sums), roots)

    return lp_pool


def _multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    # No second derivative.
    rows, y = torch.atleast_2d(input), target.reshape(-1, 1)
    slack = (margin - rows.gather(1, y) + rows).clamp(min=0)
    slack = slack.pow(p) if p != 1 else slack
    if weight is not None:
        slack = slack * weight[y]
    # Not the margin of the target to itself.
    others = torch.ones_like(slack, dtype=torch.bool).scatter(1, y, False)
    losses = (slack * others).sum(1) / rows.shape[1]
    return _reduce(losses if input.ndim == 2 else losses[0], reduction)


def _multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    # No second derivative.
    rows, y = torch.atleast_2d(input), torch.atleast_2d(target)
    listed = (y >= 0).cumprod(1).bool()  # up to the first -1
    n_classes = rows.shape[1]
    marks = F.one_hot(y.clamp(min=0), n_classes).bool() & listed.unsqueeze(-1)
    is_target = marks.any(1)
    own = rows.gather(1, y.clamp(min=0))  # n t
    slack = (1 - (own.unsqueeze(-1) - rows.unsqueeze(1))).clamp(min=0)  # n t c
    counts = listed.unsqueeze(-1) & ~is_target.unsqueeze(1)
    losses = (slack * counts).sum((1, 2)) / n_classes
    return _reduce(losses if input.ndim == 2 else losses[0], reduction)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    # No second derivative, and none in forward mode.
    words = input.reshape(-1)
    if offsets is None:  # a row is a bag
        n_bags = len(input)
        bag = torch.arange(n_bags, device=input.device).repeat_interleave(
            input.shape[1]
        )
    else:
        starts = offsets[:-1] if include_last_offset else offsets
        n_bags = len(starts)
        places = torch.arange(len(words), device=input.device, dtype=starts.dtype)
        bag = torch.searchsorted(starts.contiguous(), places, right=True) - 1
    rows = F.embedding(words, weight)
    counts = torch.ones_like(words, dtype=weight.dtype)
    if padding_idx is not None:
        counts = (words != padding_idx % len(weight)).to(weight.dtype)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    if mode == "max":
        empty = counts.unsqueeze(1) == 0
        rows = rows.masked_fill(empty, float("-inf"))
        start = rows.new_full((n_bags, rows.shape[1]), float("-inf"))
        where = bag.unsqueeze(1).expand_as(rows)
        found = start.scatter_reduce(0, where, rows, "amax")
        return torch.where(found == float("-inf"), torch.zeros_like(found), found)
    sums = rows.new_zeros(n_bags, rows.shape[1]).index_add(
        0, bag, rows * counts.unsqueeze(1)
    )
    if mode == "sum":
        return sums
    sizes = counts.new_zeros(n_bags).index_add(0, bag, counts)
    return sums / sizes.clamp(min=1).unsqueeze(1)


def _group_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # Forward mode fails for channels-last images.
    return F.group_norm(input.contiguous(), *args, **kwargs)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    # The second derivative is wrong for one channels-last example.
    if use_input_stats and running_mean is None:
        return _group_norm(input, input.shape[1], weight, bias, eps)
    if use_input_stats or running_mean is None or running_var is None:
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, True, momentum, eps
        )
    shape = (-1, *(1 for _ in input.shape[2:]))
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    output = (input - running_mean.view(shape)) * scale.view(shape)
    return output if bias is None else output + bias.view(shape)


def _view_as_complex(input: Tensor) -> Tensor:
    # PyTorch's own fails in the backward pass where a slope starts at an odd offset in
    # its memory.
    return torch.complex(input[..., 0], input[..., 1])


def _view_as_real(input: Tensor) -> Tensor:
    return torch.stack([input.real, input.imag], -1)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    # Forward mode does not know that the padding's row is a constant.
    if padding_idx is not None:
        rows = torch.arange(len(weight), device=weight.device)
        is_padding = (rows == padding_idx % len(weight)).unsqueeze(1)
        weight = torch.where(is_padding, weight.detach(), weight)
    return F.embedding(input, weight, padding_idx, *args, **kwargs)


SPELLED_OUT: Mapping[Any, Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    F.hardsigmoid: _hardsigmoid,
    torch.sinc: _sinc,
    torch.special.sinc: _sinc,
    Tensor.sinc: _sinc,
    torch.prod: _prod,
    Tensor.prod: _prod,
    torch.cumprod: _cumprod,
    Tensor.cumprod: _cumprod,
    torch.logcumsumexp: _logcumsumexp,
    Tensor.logcumsumexp: _logcumsumexp,
    torch.cdist: _cdist,
    F.pdist: _pdist,
    torch.pdist: _pdist,
    F.lp_pool1d: _lp_pool(1),
    F.lp_pool2d: _lp_pool(2),
    F.lp_pool3d: _lp_pool(3),
    F.multi_margin_loss: _multi_margin_loss,
    F.multilabel_margin_loss: _multilabel_margin_loss,
    F.embedding_bag: _embedding_bag,
    F.embedding: _embedding,
    torch.view_as_complex: _view_as_complex,
    torch.view_as_real: _view_as_real,
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
}
