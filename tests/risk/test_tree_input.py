"""X of several arrays: where it comes from, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils import data

from flatmin.risk import EmpiricalRisk
from flatmin.risk.data.source import find_source
from flatmin.risk.products import graphs

from .test_trees import MASK, A, B, Two, Words, Y

N = len(A)
NET = Two().double()
WORDS = Words().double()
RAGGED = [torch.arange(1, 2 + i % 3) for i in range(N)]


def make(X, y=Y, module=NET, **options):
    return EmpiricalRisk(module, "cross_entropy", X, y, **options)


class Items(data.Dataset):
    """Whatever ``item(i)`` makes of an example."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.item(i)


def pad(items):
    """Collate sequences with a mask, each batch to its own longest."""
    ids = pad_sequence([ids for ids, _ in items], batch_first=True)
    return {"ids": ids, "mask": ids > 0, "y": torch.stack([y for _, y in items])}


NAMED = ({"first": A, "second": B}, Y)
SOURCES = {
    "pairs of a mapping": lambda i: ({"first": A[i], "second": B[i]}, Y[i]),
    "pairs of a tuple": lambda i: ((A[i], B[i]), int(Y[i])),
    "mappings": lambda i: {"first": A[i], "second": B[i], "y": Y[i]},
}


@pytest.mark.parametrize("as_loader", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_data_sets(name, as_loader):
    items = Items(SOURCES[name])
    source = data.DataLoader(items, batch_size=3) if as_loader else items
    streamed = make(source, None, target="y", chunk_size=3)
    arrays = make(*NAMED, chunk_size=3)
    theta = arrays.params()
    v = torch.linspace(-1, 1, len(theta)).double()
    for ask in (
        lambda r: r.value(theta),
        lambda r: r.batch_gradient(theta, torch.tensor([5, 0, 5])),
        lambda r: r.squared_norms(theta),
        lambda r: r.linearize(theta).hvp(v),
        lambda r: r.subset(torch.tensor([1, 2])).gradient(theta),
    ):
        torch.testing.assert_close(ask(streamed), ask(arrays))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_pads_each_batch_to_its_own_length(workers):
    items = Items(lambda i: (RAGGED[i], Y[i]))
    loader = data.DataLoader(items, collate_fn=pad, num_workers=workers)
    streamed = make(loader, None, WORDS, target="y", chunk_size=3)
    ids = pad_sequence(RAGGED, batch_first=True)
    whole = make({"ids": ids, "mask": ids > 0}, module=WORDS)
    theta = whole.params()
    torch.testing.assert_close(streamed.gradient(theta), whole.gradient(theta))


def test_targets_in_a_mapping_of_arrays():
    held = {"second": B, "labels": Y, "first": A}
    found, expected = make(held, None, target="labels"), make(*NAMED)
    theta = found.params()
    assert torch.equal(found.gradient(theta), expected.gradient(theta))
    assert "labels" in held
    # y beside is right too, where the mapping does not hold it
    assert make(*NAMED, target="labels").value(theta) == expected.value(theta)


def test_a_change_of_any_leaf_shows():
    leaves = {"first": A.clone(), "second": B.clone()}
    risk = (
        make(
            data.StackDataset(**{"x": data.StackDataset(**leaves), "y": Y}),
            None,
            target="y",
        )
        if False
        else None
    )
    items = Items(lambda i: ({name: leaf[i] for name, leaf in leaves.items()}, Y[i]))
    risk = make(items, None)
    leaves["second"][3, 1] += 1e-12
    with pytest.raises(ValueError, match="first is number 3"):
        risk.value(risk.params())


def test_swapped_names_are_other_data():
    C = torch.randn(N, 2)
    one, other = (
        find_source(Items(f), None)
        for f in (
            lambda i: ({"a": B[i], "b": C[i]}, Y[i]),
            lambda i: ({"a": C[i], "b": B[i]}, Y[i]),
        )
    )
    again = find_source(Items(lambda i: ({"b": C[i], "a": B[i]}, Y[i])), None)
    assert (one.checksums == again.checksums).all()  # the order does not count
    assert (one.checksums != other.checksums).all()


def test_a_copy_elsewhere_has_the_same_data():
    risk = make(*NAMED, sample_weight=torch.arange(N) + 1.0)
    short = risk.to(dtype="float32")
    torch.testing.assert_close(
        short.gradient(short.params()).double(),
        risk.gradient(risk.params()),
        rtol=1e-5,
        atol=1e-6,
    )
    other = risk.with_module(Two().double())
    assert other.value(risk.params()) == risk.value(risk.params())


class OneGraph(nn.Module):
    """Nodes of one graph as examples."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, features, adjacency):
        return adjacency[:, : len(features)] @ self.linear(features)


BAD = {
    "another length": (
        {"X": {"first": A, "second": B[1:]}},
        ValueError,
        r"Got 7 in X\['first'\] and 6 in X\['second'\]",
    ),
    "other than y": (
        {"X": (A[:3], B[:3])},
        ValueError,
        "examples. Got 3 and 7",
    ),
    "one number": (
        {"X": (A, torch.tensor(2.0))},
        ValueError,
        r"X\[1\] must hold at least one example along its first axis. Got shape \(\)",
    ),
    "no N first": ({"X": (A, B[:1])}, ValueError, r"Got 7 in X\[0\] and 1 in X\[1\]"),
    "NaN": ({"X": (A, B / 0 * 0)}, ValueError, r"X\[1\] contains NaN"),
    "text": (
        {"X": {"first": A, "second": ["a"] * N}},
        TypeError,
        r"X\['second'\] must be an array of numbers",
    ),
    "nothing": ({"X": {}}, ValueError, "X must hold at least one array.*empty dict"),
    "nothing within": ({"X": (A, ())}, ValueError, r"X\[1\] must hold.*empty tuple"),
    "numbers as names": (
        {"X": {0: A, 1: B}},
        TypeError,
        "be strings. Got 0",
    ),
    "other names": (
        {"X": {"first": A, "other": B}},
        ValueError,
        "takes the arguments first, second. Got the names first, other: .*'second'",
    ),
    "one array": (
        {"X": A},
        ValueError,
        "first, second. Got 1 array",
    ),
    "three arrays": ({"X": (A, B, B)}, ValueError, "Got 3 arrays: too many positional"),
    "integers for floats": (
        {"X": (A, B.long())},
        ValueError,
        r"X\[1\] of shape \(7, 2\) and dtype torch.int64.*convert to float",
    ),
    "a ragged list": (
        {"X": [[1], [1, 2], [3]], "y": Y[:3], "module": WORDS},
        TypeError,
        "X must be an array of numbers.*lengths from 1 to 2; pad",
    ),
    "ragged tensors": (
        {"X": {"ids": RAGGED, "mask": MASK}, "module": WORDS},
        TypeError,
        r"X\['ids'\] must be an array of numbers.*lengths from 1 to 3; pad",
    ),
    "a ragged column": (
        {"X": {"ids": pd.Series([[1], [1, 2]]), "mask": MASK}, "module": WORDS},
        TypeError,
        r"X\['ids'\] must be an array of numbers.*lengths from 1 to 2; pad",
    ),
    "ragged objects": (
        {"X": np.array([np.ones(2), np.ones(3)], dtype=object), "y": Y[:2]},
        TypeError,
        "lengths from 2 to 3; pad",
    ),
    "ragged targets": (
        {"X": (A, B), "y": RAGGED},
        TypeError,
        "y must be an array of numbers.*pad",
    ),
    "packed": (
        {"X": pack_sequence(RAGGED, enforce_sorted=False), "module": WORDS},
        TypeError,
        "Got a PackedSequence; pad it",
    ),
    "packed within": (
        {"X": {"ids": pack_sequence(RAGGED, enforce_sorted=False)}, "module": WORDS},
        TypeError,
        r"X\['ids'\] must hold every example.*PackedSequence; pad it",
    ),
    "no name": (
        {"X": Items(SOURCES["mappings"]), "y": None},
        ValueError,
        r"target=NAME, which is one of \['first', 'second', 'y'\]. Got target=None",
    ),
    "another name": (
        {"X": Items(SOURCES["mappings"]), "y": None, "target": "labels"},
        ValueError,
        r"one of \['first', 'second', 'y'\]. Got target='labels'",
    ),
    "no such name": (
        {"X": {"first": A, "second": B}, "y": None, "target": "labels"},
        ValueError,
        r"one of \['first', 'second'\]. Got target='labels'",
    ),
    "targets twice": (
        {"X": {"first": A, "second": B, "labels": Y}, "target": "labels"},
        ValueError,
        "targets must come once",
    ),
    "no mapping": (
        {"X": (A, B), "y": None, "target": "labels"},
        ValueError,
        "target='labels' is a name in a mapping X",
    ),
    "no text": ({"X": (A, B), "target": 1}, TypeError, "target must be the name"),
    "lengths that differ": (
        {"X": Items(lambda i: (RAGGED[i], Y[i])), "y": None, "module": WORDS},
        ValueError,
        "collate_fn pads them",
    ),
    "no tensors": (
        {"X": Items(lambda i: ({"first": "a"}, Y[i])), "y": None},
        TypeError,
        "mappings of tensors",
    ),
    "nodes of one graph": (
        {"X": (B, torch.rand(N, N).double()), "module": OneGraph().double()},
        ValueError,
        "must not depend on the others.*a graph",
    ),
    "too large": (
        {"X": (A, B * 1e39), "dtype": "float32"},
        ValueError,
        r"X\[1\] must fit into torch.float32",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    options, error, text = BAD[name]
    with pytest.raises(error, match=f"(?s){text}"):
        make(**options)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    nested = torch.nested.nested_tensor(RAGGED, layout=layout)
    for X in (nested, {"ids": nested, "mask": MASK}):
        with pytest.raises(TypeError, match=r"(?s)nested tensor.*to_padded"):
            make(X, module=WORDS)


def test_examples_of_a_leaf_may_see_each_other_in_no_way():
    class Mixing(Two):
        def forward(self, first, second):
            return super().forward(first, second - second.mean(0))

    with pytest.raises(ValueError, match="must not depend on the others"):
        make((A, B), module=Mixing().double())


def test_a_forward_that_does_not_tell_its_arguments():
    class Written(Two):
        forward = property(lambda self: Hidden(super().forward))

    class Hidden:
        def __init__(self, function):
            self.function = function

        def __call__(self, *args):
            return self.function(*args)

        @property
        def __signature__(self):
            raise ValueError("no signature found")

    net = Written().double()
    net.load_state_dict(NET.state_dict())
    theta = make((A, B)).params()
    assert make((A, B), module=net).value(theta) == make((A, B)).value(theta)
    with pytest.raises(TypeError, match="missing 1 required"):
        make((A,), module=net)


def test_a_module_of_one_mapping_gets_a_tuple_of_it():
    class Batch(Two):
        def forward(self, batch):
            return super().forward(batch["first"], batch["second"])

    net, batch = Batch().double(), {"first": A, "second": B}
    net.load_state_dict(NET.state_dict())
    theta = make((A, B)).params()
    assert make((batch,), module=net).value(theta) == make((A, B)).value(theta)
    with pytest.raises(ValueError, match=r"takes a mapping.* X=\(mapping,\)"):
        make(batch, module=net)


def test_lists_are_one_array():
    net = nn.Linear(3, 3).double()
    rows = [row.tolist() for row in A]
    found, expected = (EmpiricalRisk(net, "cross_entropy", X, Y) for X in (rows, A))
    theta = found.params()
    assert found.value(theta) == expected.value(theta)


def test_names_may_come_in_another_order_from_example_to_example(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 1)  # which takes leaves by place

    def item(i):
        pair = {"first": A[i], "second": B[i], "labels": Y[i]}
        return pair if i % 2 else dict(reversed(pair.items()))

    found = make(Items(item), None, target="labels", chunk_size=1)
    expected = make({"first": A, "second": B})
    theta = found.params()
    v = torch.linspace(-1, 1, len(theta), dtype=theta.dtype)
    product = found.linearize(theta).hvp(v)
    assert found.paths["hvp"] == "graph"
    torch.testing.assert_close(product, expected.linearize(theta).hvp(v))
