"""Pooling, by every layer of PyTorch."""

import copy
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ._nets import N, around

KINDS = {}
_SIDES = {1: (6,), 2: (4, 4), 3: (3, 3, 3)}


def _pool(layer, d, *args, **options):
    # Of positive numbers: an odd power of others can have no root.
    return around(layer(*args, **options), _data(d), call=lambda pool, h: pool(h.exp()))


def _data(d):
    return torch.randn(N, *([2] if d == 1 else [1]), *_SIDES[d])


def _table(d):
    n = f"{d}d"
    return {
        f"MaxPool{n}": ((2,), {}),
        f"MaxPool{n}, overlapping": ((3,), {"stride": 1, "padding": 1}),
        f"MaxPool{n}, ceil and dilation": (
            (2,),
            {"ceil_mode": True, "dilation": 2, "stride": 1},
        ),
        f"AvgPool{n}": ((2,), {}),
        f"AvgPool{n}, padding left out": (
            (3,),
            {"stride": 1, "padding": 1, "count_include_pad": False},
        ),
        f"LPPool{n}": ((2, 2), {}),
        f"LPPool{n}, third power": ((3, 2), {"stride": 1}),
        f"AdaptiveAvgPool{n}": ((2,), {}),
        f"AdaptiveMaxPool{n}": ((2,), {}),
    }


for d in (1, 2, 3):
    for name, (args, options) in _table(d).items():
        layer = getattr(nn, name.split(",")[0])
        KINDS[name] = partial(_pool, layer, d, *args, **options)


class _Norms(nn.Module):
    """``LPPool2d(2, 2)``, with the derivative 0 where a window is zero."""

    def forward(self, h):
        sums = 4 * F.avg_pool2d(h.square(), 2)
        zero = sums.detach() == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, sums).sqrt())


def _behind_relu():
    """Where a window is zero its norm has a kink, and PyTorch's derivative is NaN."""
    X = torch.randn(N, 1, 4, 4)
    kind = around(nn.LPPool2d(2, 2), X, call=lambda pool, h: pool(h.relu()))
    spelled_out = copy.deepcopy(kind.module)
    spelled_out.layer = _Norms()
    return replace(kind, reference=spelled_out)


KINDS["LPPool2d behind ReLU"] = _behind_relu


def _unpool(d):
    pool = getattr(nn, f"MaxPool{d}d")(2, return_indices=True)
    unpool = getattr(nn, f"MaxUnpool{d}d")(2)
    layers = nn.ModuleList([pool, unpool])
    X = torch.randn(N, *([2] if d == 1 else [1]), *(_SIDES[d] if d < 3 else (2, 2, 2)))
    return around(layers, X, call=lambda layers, h: layers[1](*layers[0](h)))


for d in (1, 2, 3):
    KINDS[f"MaxUnpool{d}d"] = partial(_unpool, d)


def _fractional(layer, d, refused=None, **options):
    """Draws where it pools, also in eval mode, unless it is told where."""
    X = torch.randn(N, 1, *[7] * d)
    return around(layer(2, output_size=3, **options), X, refused=refused)


_RANDOM = "same output for the same input"
KINDS["FractionalMaxPool2d"] = lambda: _fractional(nn.FractionalMaxPool2d, 2, _RANDOM)
KINDS["FractionalMaxPool3d"] = lambda: _fractional(nn.FractionalMaxPool3d, 3, _RANDOM)
