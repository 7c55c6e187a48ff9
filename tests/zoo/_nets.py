"""Small networks around what is tested: parameters before it, and behind it."""

import torch
from torch import nn

from ._harness import Kind

__all__ = ["Around", "Head", "N", "around", "between", "labels"]

N = 7  # no multiple of 3


def labels(n_classes=3):
    return torch.randint(0, n_classes, (N,))


class Head(nn.Module):
    """Three logits from any number of features, by few parameters."""

    def __init__(self, n_features):
        super().__init__()
        mix = torch.randn(n_features, 3) / n_features**0.5
        self.register_buffer("mix", mix)
        self.last = nn.Linear(3, 3)

    def forward(self, h):
        return self.last((h.flatten(1) @ self.mix).tanh())


class Around(nn.Module):
    """``head(function(layer, front(x)))``."""

    def __init__(self, front, layer, function, n_features):
        super().__init__()
        self.front, self.layer, self.function = front, layer, function
        self.head = Head(n_features)

    def forward(self, x):
        return self.head(self.function(self.layer, self.front(x)))


def around(layer, X, *, front=None, call=None, **known):
    """Return the kind of a layer between a front and a head.

    ``call(layer, h)`` returns a tensor with the examples first; None calls the layer.
    """
    call = call or _call
    front = front or front_of(X)
    with torch.no_grad():
        n_features = call(layer.eval(), front(X)).flatten(1).shape[1]
    known.setdefault("y", labels())
    return Kind(Around(front, layer, call, n_features), X, **known)


def front_of(X):
    """Return a layer with parameters that keeps the shape of X, or doubles channels."""
    if not X.is_floating_point():
        return nn.Identity()
    if X.ndim < 4:
        return nn.Linear(X.shape[-1], X.shape[-1])
    conv = {4: nn.Conv2d, 5: nn.Conv3d}[X.ndim]
    return conv(X.shape[1], 2, 1)


def _call(layer, h):
    return layer(h)


def between(function, d=4, scale=1.0, **known):
    """Return the kind of a function of (N, d) numbers, behind a linear layer."""
    return around(
        nn.Identity(),
        scale * torch.randn(N, 4),
        front=nn.Linear(4, d),
        call=lambda _, h: function(h),
        **known,
    )
