"""What examples share among many alone: refused, or right at every θ."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk

from ._cases import Apply

N, SEEDS = 40, 25
REFUSED = r"output for one example must not depend on the others.*a capacity"


def experts(places, shape):
    """Tokens go to the expert of their choice, which takes the first that come.

    A token that is dropped keeps what it had: Fedus, Zoph and Shazeer, 2022.
    """

    def forward(p, x):
        tokens = x.reshape(-1, x.shape[-1])
        probability, chosen = p["router"](tokens).softmax(-1).max(-1)
        mine = F.one_hot(chosen, len(p["experts"]))
        queue = (mine.cumsum(0) * mine).sum(-1)
        kept = queue <= places(len(tokens), len(p["experts"]))
        out = torch.stack([expert(tokens).tanh() for expert in p["experts"]], 1)
        out = out[torch.arange(len(tokens)), chosen] * (kept * probability)[:, None]
        return p["head"]((tokens + out).view(x.shape).flatten(1))

    parts = {
        "router": nn.Linear(4, 3),
        "experts": nn.ModuleList(nn.Linear(4, 4) for _ in range(3)),
        "head": nn.Linear(math.prod(shape), 3),
    }
    return Apply(forward, **parts)


def plain(forward):
    return Apply(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 3))


def largest(places, p, x):
    """The examples of the largest scores go on, the others are 0."""
    h = p["a"](x).tanh()
    kept = torch.zeros(len(h)).to(h)
    kept[h.sum(1).topk(min(places, len(h))).indices] = 1
    return p["b"](h * kept[:, None])


def first_of_equals(p, x):
    """An example that came before, to two digits, is left out."""
    h = p["a"](x).tanh()
    alike = (x[:, None, 0] - x[None, :, 0]).abs() < 1e-2
    return p["b"](h * ~(alike.tril(-1).any(1))[:, None])


def distinct(places, p, x):
    """A table holds the first distinct values."""
    h = p["a"](x).tanh()
    _, place = x[:, 0].unique(return_inverse=True)
    return p["b"](h * (place < places)[:, None])


def ranked(p, x):
    """What comes far behind in the order of a number is scaled down."""
    rank = x[:, 0].argsort().argsort()
    return p["b"](p["a"](x).tanh() / (1 + rank.clamp(min=20) - 20)[:, None])


def modules():
    """Name -> module, shape of X."""
    flat, sequence = (4,), (5, 4)
    found = {
        f"{name}, {'tokens' if shape is sequence else 'examples'}": (
            lambda places=places, shape=shape: experts(places, shape),
            shape,
        )
        for shape in (flat, sequence)
        for name, places in {
            "2 places": lambda _, __: 2,
            "20 places": lambda _, __: 20,
            "39 places": lambda _, __: 39,
            "places 1.25 n / experts": lambda n, e: math.ceil(1.25 * n / e),
            "places 2 n / experts": lambda n, e: math.ceil(2 * n / e),
            "places 3 n / experts": lambda n, e: math.ceil(3 * n / e),
            "1000 places": lambda _, __: 1000,
        }.items()
    }
    forwards = {
        "the largest 10": lambda p, x: largest(10, p, x),
        "the largest 39": lambda p, x: largest(39, p, x),
        "the largest 40": lambda p, x: largest(40, p, x),
        "the first of equals": first_of_equals,
        "25 distinct": lambda p, x: distinct(25, p, x),
        "38 distinct": lambda p, x: distinct(38, p, x),
        "by rank": ranked,
    }
    return found | {name: (lambda f=f: plain(f), flat) for name, f in forwards.items()}


# Nothing is ever shared out: refusing these would be wrong, too.
NEVER_FULL = ("1000 places", "places 3 n / experts", "the largest 40")


def alone(module, X, theta):
    """The outputs of the examples one by one, in float64."""
    nn.utils.vector_to_parameters(theta, module.parameters())
    return torch.cat([module(X[i : i + 1]) for i in range(len(X))])


@pytest.mark.parametrize("name", modules())
def test_refused_or_right(name):
    make, shape = modules()[name]
    never_full = name.startswith(NEVER_FULL)
    for seed in range(3 if never_full else SEEDS):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = make().double()
            X, y = torch.randn(N, *shape).double(), torch.arange(N) % 3
        if not never_full:
            with pytest.raises(ValueError, match=REFUSED):
                EmpiricalRisk(module, "cross_entropy", X, y)
            continue
        risk = EmpiricalRisk(module, "cross_entropy", X, y)
        theta = -2 * risk.params()  # where the tokens make another choice
        outputs = alone(module, X, theta)
        torch.testing.assert_close(risk.outputs(theta), outputs)
        parts = torch.autograd.grad(
            F.cross_entropy(outputs, y), list(module.parameters())
        )
        gradient = torch.cat([part.flatten() for part in parts])
        torch.testing.assert_close(risk.gradient(theta), gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_choice_of_positions_is_no_dependence(dtype):
    def forward(p, x):
        h = p["a"](x).tanh()
        scores = h.sum(-1)
        # As of kernels, whose rounding depends on where in a batch a number lies.
        places = torch.arange(scores.numel()).view(scores.shape).to(x)
        scores = scores * (1 + 4 * torch.finfo(x.dtype).eps * (places % 3))
        return p["b"](h.mean(1) + p["places"](scores.argmax(1)))

    parts = {"a": nn.Linear(4, 5), "places": nn.Embedding(7, 5)}
    module = Apply(forward, **parts, b=nn.Linear(5, 3)).to(dtype)
    X = torch.randn(N, 7, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    EmpiricalRisk(module, "cross_entropy", X, torch.arange(N) % 3)
