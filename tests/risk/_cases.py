"""Networks, losses and data as a table."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from flatmin.risk import EmpiricalRisk

from .. import oracles

N = 7
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0, 1.0, 0.25], dtype=torch.float64)


class Apply(nn.Module):
    """``function(part, X)``, for forward passes of one line."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleDict(parts)

    def forward(self, X):
        return self.function(self.parts, X)


class ScaledLinear(nn.Module):
    """A parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.linear = nn.Linear(4, 2)

    def forward(self, X):
        return self.scale * self.linear(X).tanh()


def mlp(n_out=3, activation=nn.Tanh):
    return nn.Sequential(nn.Linear(4, 4), activation(), nn.Linear(4, n_out))


def convolutional():
    """Stride, padding, dilation and groups; ``view`` wants rows."""
    return Apply(
        lambda p, X: p["head"](p["body"](X).view(len(X), -1)),
        body=nn.Sequential(
            nn.Conv2d(2, 2, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2, 4, 2, groups=2, dilation=2, padding=1),
            nn.Tanh(),
            nn.MaxPool2d(2),
        ),
        head=nn.Linear(16, 3),
    )


def channels_last_convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.Softplus(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


def tied():
    """An autoencoder whose decoder is its encoder's transpose."""
    return Apply(
        lambda p, X: F.linear(p["code"](X).tanh(), p["code"].weight.T),
        code=nn.Linear(4, 3),
    )


def shared():
    """One layer under two names."""
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 3))


def called_twice():
    return Apply(
        lambda p, X: p["head"](p["layer"](p["layer"](X).sigmoid()).sigmoid()),
        layer=nn.Linear(4, 4),
        head=nn.Linear(4, 2),
    )


def batch_norm(layer, width):
    norm = layer(width)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def transformer(n_out=3):
    return Apply(
        lambda p, X: p["head"](p["layer"](X)).transpose(1, 2),
        layer=nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True),
        head=nn.Linear(4, n_out),
    )


def recurrent(kind):
    return Apply(
        lambda p, X: p["head"](p["rnn"](X)[0][:, -1]),
        rnn=kind(2, 2, batch_first=True),
        head=nn.Linear(2, 2),
    )


def embedding():
    return Apply(
        lambda p, X: p["head"](p["words"](X).tanh().mean(1)),
        words=nn.Embedding(6, 3, padding_idx=0),
        head=nn.Linear(3, 3),
    )


def branching():
    """Each example takes the branch that its own sum decides."""

    def forward(parts, X):
        rows = [parts["up" if row.sum() > 0 else "down"](row) for row in X]
        return torch.stack(rows).tanh()

    return Apply(forward, up=nn.Linear(4, 3), down=nn.Linear(4, 3))


def frozen():
    module = mlp()
    module[0].requires_grad_(False)
    return module


def unused():
    return Apply(lambda p, X: p["used"](X), used=nn.Linear(4, 3), spare=nn.Linear(2, 2))


def log_cosh(outputs, y):
    """A callable loss of shape (n, C), convex and not quadratic."""
    return (outputs - y).cosh().log()


def images(channels, size):
    return lambda: torch.randn(N, channels, size, size)


def numbers(*shape):
    return lambda: torch.randn(N, *shape)


def labels(n_classes, *shape):
    return lambda: torch.randint(0, n_classes, (N, *shape))


features = numbers(4)
classes = labels(3)


def tokens():
    X = torch.randint(0, 6, (N, 4))
    X[:, 2] = 0
    return X


CLASS_WEIGHTS = torch.tensor([1.0, 0.5, 2.0])
SMOOTHED = {"weight": CLASS_WEIGHTS, "label_smoothing": 0.1}


@dataclass(frozen=True)
class Case:
    """A network on some data, and its loss in flatmin's and in plain torch's words."""

    module: Callable[[], nn.Module]
    X: Callable[[], torch.Tensor] = features
    y: Callable[[], torch.Tensor] = classes
    loss: Any = "cross_entropy"
    losses: Callable = oracles.cross_entropy
    options: dict = field(default_factory=dict)
    train: bool = False


squared = {"loss": "squared_error", "losses": oracles.squared_error}
binary = {"loss": "binary_cross_entropy", "losses": oracles.binary_cross_entropy}
smoothed = {
    "loss": nn.CrossEntropyLoss(**SMOOTHED),
    "losses": lambda f, y: oracles.cross_entropy(
        f, y, label_smoothing=0.1, weight=CLASS_WEIGHTS.double()
    ),
}
first = {"output_transform": lambda outputs: outputs[0]}

CASES = {
    "mlp": Case(mlp),
    "mlp, two outputs": Case(partial(mlp, 2), y=numbers(2), **squared),
    "mlp, one output": Case(partial(mlp, 1), y=numbers(), **squared),
    "mlp, no output axis": Case(
        lambda: nn.Sequential(mlp(1), nn.Flatten(0)), y=numbers(), **squared
    ),
    "mlp, one logit": Case(partial(mlp, 1), y=labels(2), **binary),
    "mlp, labels of two kinds": Case(partial(mlp, 2), y=labels(2, 2), **binary),
    "mlp, smoothed": Case(mlp, **smoothed),
    "mlp, log-cosh": Case(
        partial(mlp, 2),
        y=numbers(2),
        loss=log_cosh,
        losses=lambda f, y: log_cosh(f, y).mean(1),
    ),
    "mlp, log-cosh, no output axis": Case(
        lambda: nn.Sequential(mlp(1), nn.Flatten(0)),
        y=numbers(),
        loss=log_cosh,
        losses=log_cosh,
    ),
    "mlp, Huber": Case(
        partial(mlp, 2),
        y=numbers(2),
        loss=nn.HuberLoss(reduction="sum", delta=10.0),
        losses=lambda f, y: oracles.squared_error(f, y) / 2,
    ),
    "image to image": Case(
        lambda: nn.Conv2d(2, 2, 3), X=images(2, 4), y=numbers(2, 2, 2), **squared
    ),
    "convolutional": Case(convolutional, X=images(2, 8)),
    "convolutional over time, smoothed": Case(
        lambda: nn.Conv1d(2, 3, 2), X=numbers(2, 3), y=labels(3, 2), **smoothed
    ),
    "convolutional, one channel": Case(
        channels_last_convolutional, X=images(1, 5), y=labels(2)
    ),
    "tied": Case(tied, y=numbers(4), **squared),
    "shared": Case(shared),
    "called twice": Case(called_twice, y=labels(2)),
    "in-place ReLU": Case(partial(mlp, activation=partial(nn.ReLU, inplace=True))),
    "in place on the input": Case(
        lambda: nn.Sequential(nn.LeakyReLU(0.3, inplace=True), nn.Linear(4, 3))
    ),
    "batch norm": Case(
        lambda: nn.Sequential(nn.Linear(4, 3), batch_norm(nn.BatchNorm1d, 3))
    ),
    "batch norm, frozen": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3),
            batch_norm(nn.BatchNorm2d, 3),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        X=images(2, 4),
        options={"batch_norm": "frozen"},
        train=True,
    ),
    "group norm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2)
        ),
        X=images(1, 3),
        y=labels(2),
    ),
    "layer norm": Case(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    ),
    "weight norm": Case(
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 3)
        )
    ),
    "scalar parameter": Case(ScaledLinear, y=numbers(2), **squared),
    "transformer": Case(transformer, X=numbers(2, 4), y=labels(3, 2)),
    "LSTM": Case(partial(recurrent, nn.LSTM), X=numbers(3, 2), y=labels(2)),
    "GRU": Case(partial(recurrent, nn.GRU), X=numbers(3, 2), y=labels(2)),
    "embedding": Case(embedding, X=tokens),
    "branching": Case(branching),
    "frozen": Case(frozen),
    "unused": Case(unused),
    "tuple": Case(
        lambda: Apply(lambda p, X: (p["layer"](X), X), layer=nn.Linear(4, 3)),
        options=first,
    ),
}

# Where float32 has other kernels than float64, and one plain network.
SINGLE = ["mlp", "mlp, smoothed", "convolutional", "transformer", "LSTM", "GRU"]


@dataclass(frozen=True)
class Problem:
    """A case made: the user's module and data, and a θ that is not the module's."""

    case: Case
    module: nn.Module
    X: torch.Tensor
    y: torch.Tensor
    theta: torch.Tensor

    def risk(self, **options):
        return EmpiricalRisk(
            self.module, self.case.loss, self.X, self.y, **self.case.options, **options
        )


@cache
def problem(name, dtype=torch.float64):
    """Build a case; the global generator is as before."""
    case = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(list(CASES).index(name))
        X, y = case.X(), case.y()
        module = case.module()
        module(X.clone())  # gives lazy layers their shape
        X = X.to(dtype) if X.is_floating_point() else X
        y = y.to(dtype) if y.is_floating_point() else y
        module = module.to(dtype).train(case.train)
        theta = oracles.flat_parameters(module)
        theta = theta + 0.3 * torch.randn(len(theta)).to(dtype)
    return Problem(case, module, X, y, theta)


@cache
def make_risk(name, chunk_size=None, weighted=False):
    """Build flatmin's risk of a case once; no answer depends on earlier questions."""
    weights = WEIGHTS if weighted else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The loss does not depend")
        return problem(name).risk(chunk_size=chunk_size, sample_weight=weights)


@cache
def oracle(name, *, weighted=False):
    """Differentiate a case densely."""
    p, factor = problem(name), 1.0
    if p.case.loss is smoothed["loss"]:
        # PyTorch's mean divides by the class weights of the targets that occur.
        counts = CLASS_WEIGHTS.double()[p.y].reshape(len(p.y), -1).mean(1)
        w = WEIGHTS if weighted else torch.ones_like(counts)
        factor = w.sum() / (w * counts).sum()
    return oracles.dense(
        p.module,
        lambda outputs, y: factor * p.case.losses(outputs, y),
        p.X,
        p.y,
        p.theta,
        weights=WEIGHTS if weighted else None,
        transform=p.case.options.get("output_transform", lambda outputs: outputs),
    )
