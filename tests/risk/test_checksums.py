"""Data sets that give other examples later, at random or not, and what is refused."""

import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import data

from flatmin.risk import EmpiricalRisk
from flatmin.risk.data.checksums import Checksums
from flatmin.risk.data.source import find_source

N = 150
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 3


class Examples(data.Dataset):
    """Examples that do not change, and how many have been read."""

    def __init__(self, change=None):
        self.change, self.n, self.reads, self.seen = change, N, 0, None

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        x, y = X[i].clone(), int(LABELS[i])
        return (x, y) if self.change is None else self.change(self, i, x, y)


def flip_with_torch(_, i, x, y):
    return (-x if torch.rand(()) < 0.1 else x), y


def flip_with_numpy(_, i, x, y):
    return (x.flip(0) if np.random.rand() < 0.1 else x), y  # noqa: NPY002


def flip_with_random(_, i, x, y):
    return (x * 2 if random.random() < 0.1 else x), y


def other_label(_, i, x, y):
    return x, (y + 1) % 3 if torch.rand(()) < 0.1 else y


def call_order(examples, i, x, y):
    return x + examples.reads % 2 * 0.5, y  # an even number of reads repeats


def float_label(_, i, x, y):
    return x, (1.7 if i == 33 else y)


def double_input(_, i, x, y):
    return (x.double() if i == 33 else x), y


def begins_again(examples, i, x, y):
    if i == 0:  # a generator that is seeded whenever the first example is read
        examples.seen = torch.Generator().manual_seed(0)
    return x + torch.randn((), generator=examples.seen), y


def other_inputs(_, i, x, y):
    return (x + 1 if i == 77 else x), y


def other_target(_, i, x, y):
    return x, (y + 1) % 3 if i == 77 else y


def risk(examples, **options):
    net = nn.Linear(4, 3)
    return EmpiricalRisk(net, "cross_entropy", examples, **options)


@pytest.mark.parametrize(
    "change", [flip_with_torch, flip_with_numpy, flip_with_random, other_label]
)
def test_rare_changes_are_seen_at_once(change):
    # Of four examples that are read twice, 91 trials of 200 showed a difference.
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for _ in range(200):
                with pytest.raises(ValueError, match="Examples, which gives others"):
                    find_source(Examples(change), None)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


@pytest.mark.parametrize("change", [call_order, begins_again])
def test_the_order_of_reading(change):
    with pytest.raises(ValueError, match="which gives others when it is read again"):
        find_source(Examples(change), None)


@pytest.mark.parametrize("change", [other_inputs, other_target])
@pytest.mark.parametrize(
    ("ask", "when"),
    [
        (lambda r: r.value(r.params()), r"1 of 50 differ in pass \d"),
        (
            lambda r: r.batch_gradient(r.params(), torch.tensor([3, 77, 77])),
            "1 of 3 differ when some are read by their index",
        ),
        (lambda r: r.subset(torch.tensor([77])), "1 of 1 differ when some are"),
        (lambda r: list(r.per_example_gradients(r.params())), "1 of 40 differ in"),
    ],
    ids=["pass", "minibatch", "subset", "other chunks"],
)
def test_a_later_change_names_the_example(change, ask, when):
    examples = Examples()
    streamed = risk(examples, chunk_size=50)
    streamed._row_chunk_size = 40
    ask(streamed)
    examples.change = change
    with pytest.raises(ValueError, match=rf"{when}.*the first is number 77\. Switch"):
        ask(streamed)


class InWorkers(Examples):
    """Random in the processes that read ahead, and only there."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        there = data.get_worker_info() is not None
        return x + (torch.rand(()) if there else 0), y


def test_workers_are_compared_with_the_first_reads():
    loader = data.DataLoader(InWorkers(), batch_size=50, num_workers=1)
    with pytest.raises(ValueError, match="InWorkers, which gives others"):
        risk(loader, chunk_size=50)


def test_an_order_that_changes():
    examples = Examples()
    streamed = risk(examples)
    order = torch.randperm(N).tolist()
    examples.change = lambda _, i, x, y: (X[order[i]], int(LABELS[order[i]]))
    with pytest.raises(ValueError, match="Examples, which gives others"):
        streamed.value(streamed.params())


@pytest.mark.parametrize("n", [N - 10, N + 3])
def test_a_length_that_changes(n):
    examples = Examples()
    streamed = risk(examples)
    examples.n = n
    with pytest.raises(ValueError, match=f"which had 150 of them and now has {n};"):
        streamed.value(streamed.params())


def test_a_collate_function_that_drops_examples():
    def first_half(items):
        return data.default_collate(items[: (len(items) + 1) // 2])

    with pytest.raises(ValueError, match="Got 2 and 2 for 4 of Examples when some"):
        find_source(data.DataLoader(Examples(), collate_fn=first_half), None)


def test_examples_that_are_padded_together():
    def pad(items):
        longest = max(1 + i % 4 for i in range(len(items)))
        images, labels = data.default_collate(items)
        return nn.functional.pad(images, (0, longest)), labels

    class First(nn.Linear):
        def forward(self, x):
            return super().forward(x[:, :4])

    loader = data.DataLoader(Examples(), collate_fn=pad)
    streamed = EmpiricalRisk(First(4, 3), "cross_entropy", loader, chunk_size=7)
    theta = streamed.params()
    arrays = EmpiricalRisk(First(4, 3), "cross_entropy", X, LABELS)
    torch.testing.assert_close(streamed.gradient(theta), arrays.gradient(theta))
    streamed.batch_gradient(theta, torch.tensor([3, 149]))


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool]
DTYPES += [torch.int64, torch.complex64]
CHANGES = {
    "mirrored": lambda x: x.flip(-1),
    "transposed": lambda x: x.transpose(-1, -2),
    "every bit": lambda x: (~x.view(torch.uint8)).view(x.dtype),
    "signs": lambda x: -x if x.is_signed() else x + 1,
    "zeroed": torch.zeros_like,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_change_has_another_checksum(dtype, change):
    if dtype == torch.bool and change in ("every bit", "signs"):
        pytest.skip("bools are 0 or 1")
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (20, 1, 7, 7), generator=rng).to(dtype)
    y, rows = torch.arange(20), np.arange(20)
    sums = Checksums(20)
    assert sums.all() is None
    assert not len(sums.changed(rows[:12], images[:12], y[:12]))
    assert not len(sums.changed(rows, images, y))
    # In another order, and strides, and one twice.
    some = torch.tensor([3, 19, 3, 0])
    read = images.to(memory_format=torch.channels_last)[some]
    assert not len(sums.changed(rows[some], read, y[some]))
    assert len(np.unique(sums.all())) == 20
    other = images.clone()
    other[5] = CHANGES[change](images)[5]
    assert sums.changed(rows, other, y).tolist() == [5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_every_bit_counts(dtype):
    x = torch.arange(5, dtype=dtype)[None]
    bits = x.view(torch.uint8)[0]
    sums, rows = Checksums(1), np.arange(1)
    sums.changed(rows, x, torch.zeros(1))
    for i in range(len(bits)):
        for bit in range(8):
            bits[i] ^= 1 << bit
            assert len(sums.changed(rows, x, torch.zeros(1)))
            bits[i] ^= 1 << bit
    assert not len(sums.changed(rows, x, torch.zeros(1)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (float_label, "Got y of torch.int64 in one batch and of torch.float"),
        (double_input, "Got X of torch.float32 in one batch and of torch.float64"),
    ],
)
@pytest.mark.parametrize("chunk_size", [1, 3, N])
def test_items_of_several_dtypes_are_right_or_refused(change, sentence, chunk_size):
    def loss(outputs, y):
        return (outputs[:, 0] - y) ** 2

    examples = Examples(change)
    right = np.mean([float(examples[i][1]) ** 2 for i in range(N)])
    try:
        risk = EmpiricalRisk(nn.Linear(4, 1), loss, examples, chunk_size=chunk_size)
        value = float(risk.value(torch.zeros(5)))
    except ValueError as error:
        assert re.search(rf"{sentence}.* return one type from", str(error))  # noqa: PT017
    else:
        assert value == pytest.approx(right)


class Rounded(Examples):
    """A label that is read with more digits alone than among integers."""

    def __getitem__(self, i):
        x, _ = super().__getitem__(i)
        return x, 1.7 if i % 10 == 3 else 1


def test_dtypes_that_change_numbers_are_refused_as_such():
    with pytest.raises(ValueError, match=r"Got y of .* return one type from"):
        EmpiricalRisk(
            *(nn.Linear(4, 1), "squared_error", Rounded(None)), chunk_size=1
        ).value(torch.zeros(5))
