"""Parameters in several places, activations that are kept, examples that meet."""

import torch
from torch import nn
from torch.nn import functional as F

from ._harness import Kind
from ._nets import Head, N, around, between, labels

KINDS = {}


class _Tied(nn.Module):
    """A language model: the output layer's weight is the embedding's."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.words.weight

    def forward(self, X):
        return self.out(self.words(X).tanh()).mT


class _Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.code = nn.Linear(4, 3)

    def forward(self, X):
        return F.linear(self.code(X).tanh(), self.code.weight.mT)


class _Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again = self.layer
        self.head = Head(4)

    def forward(self, X):
        return self.head(self.again(self.layer(X).tanh()).tanh())


class _Alias(nn.Module):
    """Reached by a list beside their registration, as in liquid networks."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), Head(4)
        self.again = [self.first.weight, self.first.bias]

    def forward(self, X):
        return self.head(F.linear(X, *self.again))


class _HiddenModule(nn.Module):
    """A layer in a list, which is no submodule, around a parameter that is one."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), Head(4)
        self.hidden = [self.first]

    def forward(self, X):
        return self.head(self.hidden[0](X))


class _Keeps(nn.Module):
    """A tensor with a graph among the attributes."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), Head(4)

    def forward(self, X):
        self.kept = self.first(X)
        return self.head(self.kept)


def _keeps():
    module, X = _Keeps(), torch.randn(N, 4)
    module(X)
    return Kind(module, X, labels())


def _hooked():
    """Hooks that change what a layer puts out, and that keep it."""
    kind = around(nn.Linear(4, 4), torch.randn(N, 4))
    kind.module.layer.register_forward_hook(lambda _m, _i, output: output.sin())
    kind.module.layer.register_forward_pre_hook(lambda _m, inputs: (inputs[0] * 2,))
    return kind


def _gated():
    """Squeeze and excitation."""

    def call(layer, h):
        return h * layer(h.mean((2, 3))).sigmoid()[:, :, None, None]

    return around(nn.Linear(2, 2), torch.randn(N, 1, 3, 3), call=call)


def _mixture():
    """Each example by the expert that it chooses."""

    def call(experts, h):
        choice = h.detach().argmax(1) % 2
        out = torch.zeros_like(h)
        for k, expert in enumerate(experts):
            out[choice == k] = expert(h[choice == k])
        return out

    experts = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(2)])
    return around(experts, torch.randn(N, 4), call=call)


class _Empty(nn.Module):
    """A parameter that no example uses, and one without numbers."""

    def __init__(self):
        super().__init__()
        self.unused, self.none = (
            nn.Parameter(torch.randn(2)),
            nn.Parameter(torch.ones(0)),
        )
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, h):
        return self.scale * h


KINDS["tied language model"] = lambda: Kind(
    _Tied(), torch.randint(0, 5, (N, 3)), torch.randint(0, 5, (N, 3))
)
KINDS["tied autoencoder"] = lambda: Kind(
    _Autoencoder(), torch.randn(N, 4), torch.randn(N, 4), loss="squared_error"
)
KINDS["one layer under two names"] = lambda: Kind(
    _Shared(), torch.randn(N, 4), labels()
)
KINDS["parameters under a second name"] = lambda: Kind(
    _Alias(), torch.randn(N, 4), labels()
)
KINDS["layer in a list"] = lambda: Kind(_HiddenModule(), torch.randn(N, 4), labels())
KINDS["activations kept"] = _keeps
KINDS["forward hooks"] = _hooked
KINDS["squeeze and excitation"] = _gated
KINDS["mixture of experts"] = _mixture
KINDS["unused and empty parameters"] = lambda: around(_Empty(), torch.randn(N, 4))


# Modules that see the other examples.

_MEET = "must not depend on the others"


def _capacity(h):
    """The first two examples of the positive ones are routed."""
    positive = h[:, 0] > 0
    routed = positive & (positive.cumsum(0) <= 2)
    return torch.where(routed[:, None], h.exp(), h)


_MEETING = {
    "F.batch_norm in training": lambda h: F.batch_norm(h, None, None, training=True),
    "mean of the batch": lambda h: h - h.mean(0),
    "softmax over the batch": lambda h: h * h.softmax(0),
    "a capacity that examples share": _capacity,
    "sort over the batch": lambda h: h.sort(0).values,
    "cumsum over the batch": lambda h: h.cumsum(0),
    "attention over the batch": lambda h: (h @ h.T).softmax(1) @ h,
    "mean of the batch, a detached one": lambda h: h - h.detach().mean(0),
    "size of the batch": lambda h: h / len(h),
    "cdist over the batch": lambda h: torch.cdist(h, h).mean(1, keepdim=True),
    "maximum of the batch": lambda h: h / h.abs().max(),
    "neighbour in the batch": lambda h: h + 0.1 * h.roll(1, 0),
    "only in the last place": lambda h: torch.cat([h[:-1], h[-1:] + 0.1 * h[:1]]),
}
for name, function in _MEETING.items():
    KINDS[name] = lambda function=function: between(function, refused=_MEET)
KINDS["batch flipped"] = lambda: between(
    lambda h: h.flip(0), refused="in the order of X"
)


class _GradientMeets(torch.autograd.Function):
    """Values of each by itself, gradients of the mean."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        return g + g.mean(0)


KINDS["a backward pass over the batch"] = lambda: between(
    _GradientMeets.apply, refused="gradient", second="unchecked"
)
