"""The rows of a convolution: slopes times the patches that they have seen.

Where there are groups, or few channels and many positions, patches are many times the
input: then a grouped convolution makes the rows, in which each example is a group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight

from flatmin.risk.example_sums.factors import Factors
from flatmin.risk.example_sums.row_rule import InputAndRules, RowRule, sum_of_channels

__all__ = ["convolution_rules"]

# Where a grouped convolution over the examples takes less time than patches on a CPU:
# at 128 images of 32 x 32 and 16 channels each half, at 8 x 8 and 64 twice as long.
_FEW_OUTPUTS = 16
_MANY_POSITIONS = 1 << 8


def convolution_rules(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> InputAndRules:
    """Read the arguments of ``torch.nn.functional.conv1d`` or ``conv2d``.

    Parameters
    ----------
    input : Tensor of shape (n, c, \\*positions)
    weight : Tensor of shape (o, i, \\*kernel)
        i is c over the groups.
    bias : Tensor of shape (o,), default=None
    stride : int or tuple of int, default=1
    padding : int, tuple of int, "same" or "valid", default=0
    dilation : int or tuple of int, default=1
    groups : int, default=1

    Returns
    -------
    input : Tensor
    parameters : list of (Tensor or None, RowRule)
    """
    o, i, *kernel = weight.shape
    stride, dilation = _each(stride, kernel), _each(dilation, kernel)
    settings: dict[str, Any] = {
        "stride": stride,
        "padding": _padding(padding, kernel, dilation),
        "dilation": dilation,
        "groups": groups,
    }
    if _takes_groups(input, o, groups):
        sums = partial(_by_groups, shape=weight.shape, **settings)
        rule = RowRule(sums, batch_sums=sums)
        return input, [(weight, rule), (bias, RowRule(sum_of_channels))]
    factors: Callable[..., Factors] = partial(
        _patches_and_slopes, kernel=kernel, **settings
    )

    def rows(input: Tensor, slope: Tensor, m: int = 1) -> Tensor:
        patches, slopes = factors(input, slope, m)
        return torch.bmm(slopes.mT, patches).view(len(input) // m, -1)

    def restore(sums: Tensor) -> Tensor:
        blocks = sums.reshape(*sums.shape[:-1], o, -1, i)
        return blocks.mT.flatten(-3)

    rule = RowRule(
        rows,
        restore,
        rows,
        factors=factors if groups == 1 else None,
        order=f"o {kernel} i",
        patch_size=groups * weight[0].numel(),
    )
    return input, [(weight, rule), (bias, RowRule(sum_of_channels))]


def _takes_groups(input: Tensor, n_outputs: int, groups: int) -> bool:
    """Whether one grouped convolution makes the rows, each m images one group."""
    few = n_outputs <= _FEW_OUTPUTS and input[0, 0].numel() >= _MANY_POSITIONS
    return input.device.type == "cpu" and (groups > 1 or few)


def _each(value: Any, kernel: list[int]) -> list[int]:
    """Return a setting of a convolution for each dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * len(kernel) if len(values) == 1 else values


def _padding(value: Any, kernel: list[int], dilation: list[int]) -> list[int]:
    """Return the padding as :func:`torch.nn.functional.pad` takes it."""
    amounts = []
    for dimension in reversed(range(len(kernel))):
        if value == "same":
            total = dilation[dimension] * (kernel[dimension] - 1)
            amounts += [total // 2, total - total // 2]
        else:
            size = 0 if value == "valid" else _each(value, kernel)[dimension]
            amounts += [size, size]
    return amounts


def _by_groups(
    input: Tensor,
    slope: Tensor,
    m: int = 1,
    *,
    shape: torch.Size,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Return the sums of m rows each, (n / m, P), in the order of the weight."""
    before, after = padding[::2], padding[1::2]
    if before != after:
        input, before = F.pad(input, padding), [0] * len(before)
    k = len(input) // m
    images, slopes = (
        t.unflatten(0, (k, m)).transpose(0, 1).flatten(1, 2) for t in (input, slope)
    )
    gradient = conv1d_weight if input.ndim == 3 else conv2d_weight
    total: Tensor = gradient(  # type: ignore[no-untyped-call]
        images,
        (k * shape[0], *shape[1:]),
        slopes,
        stride=stride,
        padding=before[::-1],
        dilation=dilation,
        groups=k * groups,
    )
    return total.reshape(k, -1)


def _patches_and_slopes(
    input: Tensor,
    slope: Tensor,
    m: int = 1,
    *,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Factors:
    """Return the patches that m images saw, n/m·g t (kernel i), and n/m·g t o."""
    images = F.pad(input, padding) if any(padding) else input
    slopes = slope
    if slopes.ndim == 3:  # one dimension is two, the first of size one
        images, slopes = images.unsqueeze(2), slopes.unsqueeze(2)
        kernel, stride, dilation = [1, *kernel], [1, *stride], [1, *dilation]
    n, o, height, width = slopes.shape
    by_example, by_channel, by_row, by_column = images.stride()
    patches = images.as_strided(
        (n // m, groups, m, height, width, *kernel, images.shape[1] // groups),
        (
            by_example * m,
            by_channel * (images.shape[1] // groups),
            by_example,
            by_row * stride[0],
            by_column * stride[1],
            by_row * dilation[0],
            by_column * dilation[1],
            by_channel,
        ),
        images.storage_offset(),
    )
    t = m * height * width
    patches = patches.reshape(n // m * groups, t, -1)  # (n/m g) t (kernel i)
    # Channels last, as the kernels before have left them: then nothing is copied.
    slopes = slopes.movedim(1, -1).reshape(n // m, t, groups, o // groups)
    slopes = slopes.permute(0, 2, 1, 3).reshape(n // m * groups, t, o // groups)
    return Factors(patches, slopes)
