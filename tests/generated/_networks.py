"""Small networks of many kinds: shared, tied and frozen parameters, some in place."""

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ._draws import seeds, sizes, some


class Apply(nn.Module):
    """``function(X, *layers)``."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def __repr__(self):  # Hypothesis prints it
        return f"Apply({', '.join(map(repr, self.layers))})"

    def forward(self, X):
        return self.function(X, *self.layers)


class Scale(nn.Module):
    """A parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, X):
        return self.factor * X


ACTIVATIONS = {
    "identity": nn.Identity(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(),
    "sigmoid": nn.Sigmoid(),
    "elu": nn.ELU(),
    "leaky": nn.LeakyReLU(0.1),
}


def linear(draw, c):
    d = draw(sizes)
    return nn.Linear(d, c, bias=draw(st.booleans())), (d,)


def mlp(draw, c):
    d, h, bias = draw(sizes), draw(sizes), draw(st.booleans())
    activation = ACTIVATIONS[draw(some(list(ACTIVATIONS)))]
    return nn.Sequential(nn.Linear(d, h, bias), activation, nn.Linear(h, c, bias)), (d,)


def normed(draw, c):
    d = draw(sizes)
    return nn.Sequential(nn.Linear(d, 3), nn.LayerNorm(3), nn.Linear(3, c)), (d,)


def scaled(draw, c):
    d = draw(sizes)
    return nn.Sequential(Scale(), nn.Linear(d, c), Scale()), (d,)


def writes_into_its_input(draw, c):
    d = draw(sizes)
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(d, c)), (d,)


def called_twice(draw, c):
    layer = nn.Linear(2, 2, bias=draw(st.booleans()))
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(2, c)), (2,)


def tied(draw, c):
    """An encoder whose transpose decodes: as many outputs as inputs."""
    layer = nn.Linear(c, draw(sizes), bias=draw(st.booleans()))
    return Apply(lambda X, e: F.linear(e(X).tanh(), e.weight.T), layer), (c,)


def conv1d(draw, c):
    channels, length = draw(st.integers(1, 2)), draw(st.integers(3, 6))
    conv = nn.Conv1d(
        channels,
        2,
        draw(sizes),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 1)),
        bias=draw(st.booleans()),
    )
    body = nn.Sequential(conv, nn.Tanh())
    head = nn.Linear(2, c)
    return Apply(lambda X, b, h: h(b(X).mean(-1)), body, head), (channels, length)


def conv2d(draw, c):
    channels, height, width = (draw(st.integers(1, 2)) for _ in range(3))
    height, width = height + 1, width + 2
    conv = nn.Conv2d(
        channels,
        2,
        draw(st.integers(1, 2)),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 1)),
        groups=draw(some([1, channels])),
        bias=draw(st.booleans()),
    )
    activation = ACTIVATIONS[draw(some(["tanh", "relu in place", "softplus"]))]
    body = nn.Sequential(conv, activation)
    shape = (channels, height, width)
    n = body(torch.zeros(1, *shape)).numel()
    rows = draw(some([nn.Flatten(), Apply(lambda X: X.view(len(X), -1))]))
    return nn.Sequential(body, rows, nn.Linear(n, c)), shape


def embedding(draw, c):
    padding = draw(some([None, 0]))
    words = nn.Embedding(N_WORDS, 2, padding_idx=padding)
    head = nn.Linear(2, c)
    return Apply(lambda X, w, h: h(w(X).mean(1).tanh()), words, head), (draw(sizes),)


def sequence(draw, c):
    """Outputs (n, C, T)."""
    T, d = draw(sizes), draw(sizes)
    return Apply(lambda X, a: a(X).tanh().transpose(1, 2), nn.Linear(d, c)), (T, d)


def conv_sequence(draw, c):
    channels, length = draw(st.integers(1, 2)), draw(st.integers(2, 4))
    return nn.Conv1d(channels, c, 2), (channels, length)


N_WORDS = 5
FAMILIES = {
    f.__name__: f
    for f in (
        linear,
        mlp,
        normed,
        scaled,
        writes_into_its_input,
        called_twice,
        tied,
        conv1d,
        conv2d,
        embedding,
        sequence,
        conv_sequence,
    )
}


@st.composite
def networks(draw, c):
    """A module with c outputs and the shape of one input; D is at most 50."""
    with torch.random.fork_rng():
        torch.manual_seed(draw(seeds))
        module, shape = FAMILIES[draw(some(list(FAMILIES)))](draw, c)
    parameters = list(module.parameters())
    frozen = draw(st.sets(st.integers(0, len(parameters) - 1), max_size=2))
    if len(frozen) < len(parameters):
        for i in frozen:
            parameters[i].requires_grad_(False)
    return module.to(draw(some([torch.float32, torch.float64]))), shape
