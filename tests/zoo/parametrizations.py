"""Weights that are functions of parameters."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from ._nets import N, around

KINDS = {}


def _linear(change, **known):
    layer = nn.Linear(4, 4)
    changed = change(layer)
    return around(changed or layer, torch.randn(N, 4), **known)


def _convolution(change, **known):
    layer = nn.Conv2d(2, 2, 2)
    changed = change(layer)
    return around(changed or layer, torch.randn(N, 1, 3, 3), **known)


class _Symmetric(nn.Module):
    def forward(self, W):
        return W.triu() + W.triu(1).mT


class _Exponential(nn.Module):
    def forward(self, W):
        return torch.matrix_exp(W - W.mT)


def _custom(which):
    def change(layer):
        parametrize.register_parametrization(layer, "weight", which)

    return change


def _pruned(layer):
    prune.random_unstructured(layer, "weight", 0.3)


def _pruned_by_structure(layer):
    prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)


KINDS["weight_norm"] = lambda: _linear(
    parametrizations.weight_norm, second="difference"
)
KINDS["weight_norm of a convolution"] = lambda: _convolution(
    parametrizations.weight_norm, second="difference"
)
KINDS["weight_norm, the old one"] = lambda: _linear(
    old_weight_norm, second="difference"
)
KINDS["weight_norm of everything, the old one"] = lambda: _linear(
    lambda layer: old_weight_norm(layer, dim=None), second="difference"
)
KINDS["spectral_norm"] = lambda: _linear(
    parametrizations.spectral_norm, second="unchecked"
)
KINDS["spectral_norm of a convolution"] = lambda: _convolution(
    parametrizations.spectral_norm, second="unchecked"
)
KINDS["spectral_norm, the old one"] = lambda: _linear(
    old_spectral_norm, second="unchecked"
)
for name in ("matrix_exp", "cayley"):
    KINDS[f"orthogonal by {name}"] = lambda name=name: _linear(
        lambda layer: parametrizations.orthogonal(layer, orthogonal_map=name)
    )
# It rounds the diagonal of its parameter to an integer, at a jump.
KINDS["orthogonal by householder"] = lambda: _linear(
    lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"),
    second="unchecked",
)
KINDS["a parametrization of one's own"] = lambda: _linear(_custom(_Symmetric()))
KINDS["matrix_exp as a parametrization"] = lambda: _linear(_custom(_Exponential()))
KINDS["pruned"] = lambda: _linear(_pruned)
KINDS["pruned by structure"] = lambda: _linear(_pruned_by_structure)


def _parametrized_lstm():
    layer = nn.LSTM(2, 2, batch_first=True)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    return around(
        layer,
        torch.randn(N, 2, 2),
        call=lambda layer, h: layer(h)[0][:, -1],
        second="difference",
    )


KINDS["weight_norm of an LSTM"] = _parametrized_lstm


def _standardised():
    """Weight standardisation in forward, as in BiT."""

    def call(conv, h):
        W = conv.weight
        W = W - W.mean((1, 2, 3), keepdim=True)
        W = W / (W.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(h, W, conv.bias)

    return around(nn.Conv2d(2, 2, 2), torch.randn(N, 1, 3, 3), call=call)


KINDS["weight standardisation"] = _standardised


def _low_rank():
    class LoRA(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(4, 4).requires_grad_(False)
            self.down, self.up = (
                nn.Linear(4, 1, bias=False),
                nn.Linear(1, 4, bias=False),
            )

        def forward(self, h):
            return self.base(h) + self.up(self.down(h))

    return around(LoRA(), torch.randn(N, 4))


KINDS["LoRA on a frozen layer"] = _low_rank
