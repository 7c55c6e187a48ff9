"""Sums that are joined with their products, and results that overwrite an argument."""

import operator

import pytest
import torch
from torch.fx import Graph

from flatmin.risk.products import two_stage
from flatmin.risk.products.fusion import fuse
from flatmin.risk.products.recorder import record

aten = torch.ops.aten


def fused(function, *args):
    """Return the graph of a function, fused, and how it runs."""
    graph, constants = record(function, *args)
    code = two_stage._compiled(graph, constants)  # which fuses
    return graph, code


def targets(graph: Graph):
    return [node.target for node in graph.nodes if node.op == "call_function"]


def matrices(n, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(4, 4, generator=rng, dtype=dtype) for _ in range(n)]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b, c: a @ b + b @ c, [aten.mm.default, aten.addmm_.default]),
        (lambda a, b, c: c + a @ b, [aten.addmm.default]),
        (lambda a, b, c: c[0] + a @ b, [aten.select.int, aten.addmm.default]),
        (lambda a, b, c: c + a * b, [aten.addcmul.default]),
        (lambda a, b, c: a @ b + b * c, [aten.mm.default, aten.addcmul_.default]),
        (lambda a, b, c: a + 3 * b, [aten.add.Tensor]),
        (lambda a, b, c: -(a @ b), [aten.mm.default, aten.neg_.default]),
        (lambda a, b, c: c - a @ b, [aten.mm.default, aten.sub.Tensor]),
    ],
)
def test_a_sum_and_its_product_are_one_call(function, expected):
    arguments = matrices(3)
    graph, code = fused(function, *arguments)
    assert targets(graph) == expected
    torch.testing.assert_close(code(*arguments), function(*arguments))


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, c: (a @ b) + (a @ b).t(),
        lambda a, b, c: (p := a @ b, p + c, p * c)[2] + p,
        lambda a, b, c: (p := a @ b) + p,
        lambda a, b, c: (p := a * b) + p * c,
        lambda a, b, c: ((p := a @ b).t() + c) * p,
        lambda a, b, c: (p := a @ b).view(2, 8).sum() + p,
        lambda a, b, c: (a @ b)[:1] * c + a[:1] * b[:1],
        lambda a, b, c: a.sum() * b.sum() + c * 2,
        lambda a, b, c: (a[:, :1] * b[:1]) + (a[:, :1] * c),
        lambda a, b, c: (a * b).float() + (b * c).float() * 0.5,
        lambda a, b, c: (
            torch.baddbmm(a[None], b[None], c[None]) + torch.bmm(a[None], c[None])
        ),
        lambda a, b, c: (a * b).add(c * b, alpha=2),
    ],
)
def test_what_is_read_again_is_not_written_to(function):
    arguments = matrices(3)
    before = [argument.clone() for argument in arguments]
    _, code = fused(function, *arguments)
    for _ in range(2):
        torch.testing.assert_close(code(*arguments), function(*arguments))
    assert all(map(torch.equal, arguments, before))


@pytest.mark.parametrize("seed", range(40))
def test_a_fused_graph_computes_what_it_did(seed):
    rng = torch.Generator().manual_seed(seed)

    def pick(n):
        return int(torch.randint(n, (), generator=rng))

    steps = [(pick(6), pick(99), pick(99)) for _ in range(25)]
    binary = [torch.mm, torch.mul, torch.add, torch.sub, operator.add]

    def function(*arguments):
        values = list(arguments)
        for kind, one, other in steps:
            # The last few values, most of which are read once.
            a, b = (values[-1 - place % min(5, len(values))] for place in (one, other))
            values.append(a * 0.5 if kind == 5 else binary[kind](a, b) / 4)
        return torch.stack(values[-3:])

    arguments = matrices(4)
    before = [argument.clone() for argument in arguments]
    _, code = fused(function, *arguments)
    for _ in range(2):
        torch.testing.assert_close(code(*arguments), function(*arguments))
    assert all(map(torch.equal, arguments, before))


def test_a_result_is_not_written_to():
    graph = Graph()
    a = graph.placeholder("a")
    a.meta["form"] = form = (torch.Size((2, 2)), torch.float32, torch.device("cpu"))
    product = graph.call_function(aten.mm.default, (a, a))
    total = graph.call_function(aten.add.Tensor, (product, a))
    product.meta["form"] = total.meta["form"] = form
    graph.output((product, total))
    fuse(graph)
    assert targets(graph) == [aten.mm.default, aten.add.Tensor]
