"""Convolutions in one to three dimensions."""

from functools import partial

import torch
from torch import nn

from ._nets import N, around

KINDS = {}

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_OPTIONS = {
    "": {},
    "stride and padding": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2},
    "grouped": {"groups": 2, "bias": False},
    "same": {"padding": "same"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular"},
}
_TRANSPOSED_OPTIONS = {
    "": {},
    "stride and output padding": {"stride": 2, "padding": 1, "output_padding": 1},
    "dilated": {"dilation": 2},
    "grouped": {"groups": 2, "bias": False},
}


def _convolution(layer, d, options):
    side = {1: 6, 2: 4, 3: 3}[d]
    X = torch.randn(N, 2 if d == 1 else 1, *[side] * d)
    return around(layer(2, 2, 2, **options), X)


for d in (1, 2, 3):
    for layers, table in ((_PLAIN, _OPTIONS), (_TRANSPOSED, _TRANSPOSED_OPTIONS)):
        for name, options in table.items():
            layer = layers[d - 1]
            title = f"{layer.__name__}, {name}" if name else layer.__name__
            KINDS[title] = partial(_convolution, layer, d, options)
