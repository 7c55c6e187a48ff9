"""X as a mapping, a tuple or both, against dense float64 autograd."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs

from .. import oracles

N = 7
with torch.random.fork_rng():
    torch.manual_seed(0)
    A, B = torch.randn(N, 3).double(), torch.randn(N, 2).double()
    IMAGES = torch.randn(N, 2, 5, 5).double()
    TOKENS = torch.randint(1, 6, (N, 4))
    LENGTHS = torch.tensor([4, 2, 3, 1, 4, 2, 3])
    MASK = torch.arange(4) < LENGTHS[:, None]
    Y = torch.randint(3, (N,))
    WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0, 1.0, 0.25]).double()


class Two(nn.Module):
    """Two arrays, the second of which may come in other ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, first, second):
        return self.c(torch.tanh(self.a(first) * self.b(second)))


class Nested(Two):
    def forward(self, first, more):
        second = more["numbers"][0] + more["numbers"][1]
        return super().forward(first, second)


class Images(nn.Module):
    """Channels-last for the convolution, and numbers beside."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.head = nn.Linear(5, 3)

    def forward(self, numbers, image):
        pooled = self.norm(self.conv(image)).relu().mean((2, 3))
        return self.head(torch.cat([pooled, numbers], 1))


class Writes(Two):
    def forward(self, first, second):
        second.mul_(2)
        return super().forward(first, second)


class Words(nn.Module):
    """The mean of the words that the mask leaves."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(6, 3), nn.Linear(3, 3)

    def forward(self, ids, mask):
        mask = mask.unsqueeze(-1)
        vectors = self.words(ids).tanh() * mask
        return self.head(vectors.sum(1) / mask.sum(1))


class Recurrent(nn.Module):
    """The state of a GRU at each sequence's own end."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(6, 2)
        self.rnn, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, ids, lengths):
        states = self.rnn(self.words(ids))[0]
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return self.head(states.gather(1, last)[:, 0])


class Packed(Recurrent):
    def forward(self, ids, lengths):
        packed = pack_padded_sequence(
            self.words(ids), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        return self.head(self.rnn(packed)[1][0])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(6, 4), nn.Linear(4, 3)
        self.layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True)

    def forward(self, ids, mask):
        states = self.layer(self.words(ids), src_key_padding_mask=~mask)
        kept = mask.unsqueeze(-1)
        return self.head((states * kept).sum(1) / kept.sum(1))


class Graphs(nn.Module):
    """Graph convolution on graphs in dense form."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, features, adjacency):
        return self.outer((adjacency @ self.inner(features)).relu()).mean(1)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Case:
    module: type
    X: Any
    plain: Any = None  # X in the words of the oracle


CASES = {
    "mapping": Case(Two, {"first": A, "second": B}),
    "in another order": Case(Two, {"second": B, "first": A}),
    "OrderedDict": Case(Two, OrderedDict(second=B, first=A)),
    "UserDict": Case(Two, UserDict(first=A, second=B), {"first": A, "second": B}),
    "tuple": Case(Two, (A, B)),
    "named tuple": Case(Two, Pair(A, B), (A, B)),
    "nested": Case(Nested, {"first": A, "more": {"numbers": (B, B)}}),
    "images": Case(Images, (A[:, :2], IMAGES)),
    "writes": Case(Writes, (A, B)),
    "words": Case(Words, {"ids": TOKENS, "mask": MASK}),
    "GRU": Case(Recurrent, {"ids": TOKENS, "lengths": LENGTHS}),
    "packed GRU": Case(Packed, {"ids": TOKENS, "lengths": LENGTHS}),
    "attention": Case(Attending, (TOKENS, MASK)),
    "graphs": Case(Graphs, (IMAGES[:, :, :, 0].mT, IMAGES[:, 0])),
}


def build(case, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = case.module().double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.fill_(0.3)
            part.running_var.fill_(0.7)
    return module


@cache
def dense(name):
    case = CASES[name]
    X, module = case.X if case.plain is None else case.plain, build(case)
    theta = oracles.flat_parameters(module)
    return oracles.dense(
        module, oracles.cross_entropy, X, Y, theta, weights=WEIGHTS.tolist()
    )


def make(name, **options):
    case, options = CASES[name], {"sample_weight": WEIGHTS, **options}
    return EmpiricalRisk(build(case), "cross_entropy", case.X, Y, **options)


@pytest.mark.parametrize(
    ("name", "chunk_size"),
    [
        *((name, 3) for name in CASES),
        *((name, None) for name in ("mapping", "images", "attention")),
    ],
)
def test_every_word(name, chunk_size):
    risk, right = make(name, chunk_size=chunk_size), dense(name)
    theta, some = risk.params(), torch.tensor([6, 0])
    v = torch.linspace(-1, 1, risk.n_params).double()
    point, outputs = risk.linearize(theta), right.outputs
    pulled = torch.einsum("ncp,nc->p", right.jacobians, outputs)
    for found, expected in (
        (risk.value(theta), right.value),
        (risk.outputs(theta), outputs),
        (risk.gradient(theta), right.gradient),
        (torch.cat(list(risk.per_example_gradients(theta))), right.gradients),
        (risk.squared_norms(theta), right.gradients.square().sum(1)),
        (risk.gradient_variances(theta), right.covariance.diagonal()),
        (risk.batch_gradient(theta, some), right.gradients[some].mean(0)),
        (risk.subset(some).gradient(theta), right.gradients[some].mean(0)),
        (point.hvp(v), right.hessian @ v),
        (point.ggn(v), right.gauss_newton @ v),
        (point.directional_derivatives(v), right.gradients @ v),
        (point.vjp(outputs), pulled),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    if name in ("mapping", "tuple", "nested", "images", "words", "attention", "graphs"):
        assert risk.paths["per-example sums"] == "by layer"


@pytest.mark.parametrize("name", ["nested", "images"])
def test_graphs(name, monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    risk, right = make(name, chunk_size=3), dense(name)
    v = torch.linspace(-1, 1, risk.n_params).double()
    point = risk.linearize(risk.params())
    torch.testing.assert_close(point.hvp(v), right.hessian @ v)
    torch.testing.assert_close(point.directional_derivatives(v), right.gradients @ v)
    assert set(point.paths.values()) == {"graph"}


@pytest.mark.parametrize("name", ["words", "GRU", "packed GRU", "attention"])
def test_the_amount_of_padding_does_not_count(name):
    case = CASES[name]
    tokens, second = case.X.values() if isinstance(case.X, dict) else case.X
    tokens = tokens * MASK  # a padding of zeros, and then of one more kind
    more = torch.cat([tokens, torch.full((N, 3), 5)], 1)
    other = second
    if second.dtype == torch.bool:
        other = torch.cat([second, torch.zeros(N, 3, dtype=torch.bool)], 1)
    short, long = (
        EmpiricalRisk(build(case), "cross_entropy", X, Y, chunk_size=size)
        for X, size in (((tokens, second), None), ((more, other), 3))
    )
    theta = short.params()
    v = torch.linspace(-1, 1, short.n_params).double()
    for ask in (
        lambda r: r.value(theta),
        lambda r: r.gradient(theta),
        lambda r: r.squared_norms(theta),
        lambda r: r.linearize(theta).hvp(v),
        lambda r: r.linearize(theta).ggn(v),
    ):
        torch.testing.assert_close(ask(short), ask(long), rtol=1e-9, atol=1e-11)


def test_products_by_differences_and_squares_of_hessians():
    right, risk = dense("nested"), make("nested", chunk_size=3, hvp="finite_difference")
    v = torch.linspace(-1, 1, risk.n_params).double()
    point = risk.linearize(risk.params())
    torch.testing.assert_close(point.hvp(v), right.hessian @ v, rtol=1e-6, atol=1e-8)
    # (1/N) Σ Hᵢ² v, the rows of Hᵢ by differences of the oracle's gradients.
    exact = risk.to(hvp="exact")
    alone = [exact.subset(torch.tensor([i])) for i in range(N)]
    expected = sum(
        one.linearize(v * 0 + risk.params()).hvp(one.linearize(risk.params()).hvp(v))
        for one in alone
    )
    found = exact.squared_hessian_product(risk.params(), v)
    torch.testing.assert_close(found, expected / N)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_differentiated_keeps_its_dtype(dtype):
    seen = []

    class Module(Two):
        def forward(self, first, second, ids, mask):
            seen.append((first.dtype, second.dtype, ids.dtype, mask.dtype))
            return super().forward(first, second) * mask.unsqueeze(1) + ids.unsqueeze(1)

    X = {
        "first": A.numpy(),
        "second": pd.DataFrame(B.numpy(), dtype="float32"),
        "ids": pd.Series(range(N), dtype="int32"),
        "mask": np.arange(N) < 9,
    }
    EmpiricalRisk(Module(), "cross_entropy", X, Y, dtype=dtype)
    floating = getattr(torch, dtype)
    assert set(seen[:2]) == {(floating, floating, torch.int32, torch.bool)}


def test_nested_parts_reach_the_module_as_they_were():
    seen = []

    class Module(Two):
        def forward(self, first, rest):
            seen.append(rest)
            return super().forward(first, rest["pair"].second["b"])

    rest = UserDict(pair=Pair(A, OrderedDict(b=B, a=A)))
    EmpiricalRisk(Module().double(), "cross_entropy", (A, rest), Y)
    assert all(type(found) is UserDict for found in seen)
    assert all(type(found["pair"]) is Pair for found in seen)
    assert all(type(found["pair"].second) is OrderedDict for found in seen)
    assert list(seen[0]["pair"].second) == ["b", "a"]
