"""Data sets that are read a chunk at a time, against the same data as arrays."""

import pickle

import pytest
import torch
from torch import nn
from torch.utils import data

from flatmin.curvature import GradientCovarianceOperator, HessianOperator
from flatmin.noise import METHODS, make_noise_law
from flatmin.risk import EmpiricalRisk
from flatmin.risk.products import graphs, linearize

N = 11
with torch.random.fork_rng():
    torch.manual_seed(0)
    X = torch.randn(N, 2, 6, 6, dtype=torch.float64)
    LABELS = torch.randint(0, 3, (N,))
    WEIGHTS = torch.rand(N)
    NET = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ).double()


class Numbered(data.Dataset):
    """Examples made when they are asked for, and a count of how often."""

    def __init__(self, n=N):
        self.n, self.reads = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        return X[i], int(LABELS[i])


class Augmented(Numbered):
    def __getitem__(self, i):
        return X[i] + torch.randn(()), int(LABELS[i])


class EveryOther(data.SequentialSampler):
    def __iter__(self):
        return iter(range(0, len(self.data_source), 2))


class Doubling(data.DataLoader):
    def __iter__(self):
        return ((2 * X, y) for X, y in super().__iter__())


class Stream(data.IterableDataset):
    def __iter__(self):
        return iter(zip(X, LABELS, strict=True))


def risk(examples, *targets, **options):
    return EmpiricalRisk(NET, "cross_entropy", examples, *targets, **options)


SOURCES = {
    "data set": lambda: Numbered(),
    "tensors": lambda: data.TensorDataset(X, LABELS),
    "subset": lambda: data.Subset(Numbered(), range(N)),
    "loader": lambda: data.DataLoader(Numbered(), batch_size=3),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("source", SOURCES)
def test_every_word(source, chunk_size, traced, monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0 if traced else 1 << 60)
    before = torch.get_rng_state()
    options = {"sample_weight": WEIGHTS, "chunk_size": chunk_size}
    streamed, arrays = risk(SOURCES[source](), **options), risk(X, LABELS, **options)
    theta, v = arrays.params(), torch.linspace(-1, 1, arrays.n_params).double()
    indices = torch.tensor([10, 0, 0, 7])
    assert streamed.n_examples == N
    for ask in (
        lambda r: r.value(theta),
        lambda r: r.gradient(theta),
        lambda r: r.outputs(theta),
        lambda r: r.weighted_gradient(theta, torch.arange(N).double()),
        lambda r: r.batch_gradient(theta, indices),
        lambda r: r.batch_gradients(theta, indices.view(2, 2)),
        lambda r: torch.cat(list(r.per_example_gradients(theta))),
        lambda r: r.squared_norms(theta),
        lambda r: r.gradient_variances(theta),
        lambda r: r.gauss_newton_traces(theta),
        lambda r: r.linearize(theta).hvp(v),
        lambda r: r.linearize(theta).ggn(v),
        lambda r: r.linearize(theta).vjp(r.outputs(theta)),
        lambda r: HessianOperator(r, theta).matmat(v.view(-1, 1).expand(-1, 2)),
        lambda r: GradientCovarianceOperator(r, theta) @ v,
    ):
        torch.testing.assert_close(ask(streamed), ask(arrays))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_every_law(method):
    streamed, arrays = risk(Numbered(), chunk_size=4), risk(X, LABELS, chunk_size=4)
    law = make_noise_law(method)
    if "n_components" in law.get_params():
        law.set_params(n_components=2, batch_size=3)
    theta, got = arrays.params(), []
    for each in (streamed, arrays):
        rng = torch.Generator().manual_seed(0)
        law.check(each)
        state = law.refresh(each, theta, rng)
        got.append(law.noisy_gradient(each, theta, state, rng))
    torch.testing.assert_close(got[0], got[1])


def test_prepared_chunks_are_not_read_again(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    examples = Numbered()
    streamed = risk(examples, chunk_size=4)
    point = streamed.linearize(streamed.params())
    v = torch.ones(streamed.n_params, dtype=torch.float64)
    first = point.hvp(v)
    reads = examples.reads
    torch.testing.assert_close(point.hvp(v), first)
    assert examples.reads == reads
    monkeypatch.setattr(linearize, "_KEPT_BYTES", 0)
    point = streamed.linearize(streamed.params())
    for n_products in (1, 2):
        torch.testing.assert_close(point.hvp(v), first)
        assert examples.reads == reads + n_products * N


def test_workers_read_ahead():
    loader = data.DataLoader(Numbered(), batch_size=4, num_workers=1)
    theta = risk(X, LABELS).params()
    torch.testing.assert_close(
        risk(loader).gradient(theta), risk(X, LABELS).gradient(theta)
    )


def test_a_collate_function_makes_the_batch():
    def halves(items):
        images, labels = data.default_collate(items)
        return images / 2, labels

    loader = data.DataLoader(Numbered(), batch_size=4, collate_fn=halves)
    theta = risk(X, LABELS).params()
    torch.testing.assert_close(
        risk(loader).gradient(theta), risk(X / 2, LABELS).gradient(theta)
    )


def test_it_pickles():
    streamed = risk(data.TensorDataset(X, LABELS), chunk_size=4)
    theta = streamed.params()
    copied = pickle.loads(pickle.dumps(streamed))
    assert torch.equal(copied.gradient(theta), streamed.gradient(theta))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: risk(data.DataLoader(Numbered(), shuffle=True)),
            ValueError,
            r"one order.*RandomSampler; make it with shuffle=False",
        ),
        (
            lambda: risk(data.DataLoader(Numbered(), batch_size=4, drop_last=True)),
            ValueError,
            r"all examples.*drop_last=True",
        ),
        (
            lambda: risk(data.DataLoader(Numbered(), batch_sampler=[[0, 1], [3]])),
            ValueError,
            r"one order.*with a list; .* pass its data set",
        ),
        (
            lambda: risk(
                data.DataLoader(
                    Numbered(),
                    batch_sampler=data.BatchSampler(
                        data.SequentialSampler(Numbered()), 4, drop_last=True
                    ),
                )
            ),
            ValueError,
            r"all examples.*drop_last=True",
        ),
        (
            lambda: risk(
                data.DataLoader(Numbered(), sampler=data.SequentialSampler(range(3)))
            ),
            ValueError,
            r"whole data set.*3 examples of \d+; pass torch.utils.data.Subset",
        ),
        (
            lambda: risk(
                data.DataLoader(
                    Numbered(),
                    batch_sampler=data.BatchSampler(
                        data.SequentialSampler(range(3)), 2, drop_last=False
                    ),
                )
            ),
            ValueError,
            r"whole data set.*3 examples of \d+; pass torch.utils.data.Subset",
        ),
        (
            lambda: risk(data.DataLoader(Numbered(), sampler=EveryOther(Numbered()))),
            ValueError,
            r"one order.*EveryOther",
        ),
        (
            lambda: risk(Doubling(Numbered())),
            ValueError,
            r"a Doubling, which yields batches in a way of its own; .* pass DataLoader",
        ),
        (lambda: risk(Stream()), TypeError, r"length and an order.*iterable Stream"),
        (lambda: risk(data.DataLoader(Stream())), TypeError, "iterable Stream"),
        (
            lambda: risk(Augmented()),
            ValueError,
            r"Augmented, which gives others.*augment",
        ),
        (lambda: risk(Numbered(0)), ValueError, "at least one example. Got none"),
        (lambda: risk(Numbered(), LABELS), ValueError, "y must be None with a Numb"),
        (lambda: risk(X), ValueError, "y must be given with arrays"),
        (lambda: risk(data.TensorDataset(X)), TypeError, r"pairs .x, y."),
        (
            lambda: risk(data.TensorDataset(X, LABELS + 1)),
            ValueError,
            "A module with 3 outputs can have labels 0 to 2",
        ),
        (
            lambda: risk(Numbered(), sample_weight=torch.ones(3)),
            ValueError,
            "sample_weight must have shape .11,.. Got .3,.",
        ),
    ],
)
def test_what_cannot_be_streamed(make, error, match):
    with pytest.raises(error, match=match):
        make()


class Scaling(nn.Module):
    """The first line of many vision models, and of what tells masks from numbers."""

    def __init__(self):
        super().__init__()
        self.outer = nn.Linear(6, 2)

    def forward(self, x):
        if x.dtype == torch.uint8:
            x = x / 255
        elif x.dtype == torch.bool:
            x = torch.where(x, 1.0, -1.0)
        elif x.dtype == torch.long:
            x = x % 50 / 50
        return self.outer(x)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.long])
def test_integers_reach_a_module_that_takes_them(dtype, streamed):
    rng = torch.Generator().manual_seed(0)
    X = torch.randint(0, 256, (20, 6), generator=rng)
    X = X > 127 if dtype == torch.bool else X.to(dtype)
    if dtype == torch.long:
        X += 2**24
    y = torch.arange(20) % 2
    module = Scaling()
    right = nn.functional.cross_entropy(module(X), y)
    given = (data.TensorDataset(X, y),) if streamed else (X, y)
    risk = EmpiricalRisk(module, "cross_entropy", *given)
    torch.testing.assert_close(risk.value(risk.params()), right)
    # One that takes floating numbers alone gets those.
    layer = nn.Linear(6, 2)
    risk = EmpiricalRisk(layer, "cross_entropy", *given)
    right = nn.functional.cross_entropy(layer(X.float()), y)
    torch.testing.assert_close(risk.value(risk.params()), right)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_integers_that_pytorch_only_stores(dtype):
    X, y = torch.arange(40).view(20, 2), torch.arange(20) % 2
    module = nn.Linear(2, 2)
    right = nn.functional.cross_entropy(module(X.float()), y)
    for given in (X.to(dtype), (X.to(dtype),)):
        layer = module if torch.is_tensor(given) else Floating(module)
        risk = EmpiricalRisk(layer, "cross_entropy", given, y)
        torch.testing.assert_close(risk.value(risk.params()), right)


class Floating(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.float())


class Ragged(data.Dataset):
    """Sequences of several lengths."""

    def __init__(self, n=40):
        rng = torch.Generator().manual_seed(0)
        self.sequences = [torch.randn(3 + i % 9, 3, generator=rng) for i in range(n)]

    def __len__(self):
        return len(self.sequences)

    def __getitem__(self, i):
        return self.sequences[i], i % 2


class Last(nn.Module):
    """A recurrent classifier, by the last step or by the last one that counts."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(3, 4, batch_first=True)
        self.outer = nn.Linear(4, 2)

    def forward(self, x, lengths=None):
        steps = self.cell(x)[0]
        last = len(x[0]) - 1 if lengths is None else lengths.long() - 1
        return self.outer(steps[torch.arange(len(x)), last])


def padded(items):
    x, y = zip(*items, strict=True)
    return nn.utils.rnn.pad_sequence(list(x), batch_first=True), torch.tensor(y)


def padded_with_lengths(items):
    x, y = padded(items)
    return (x, torch.tensor([len(one) for one, _ in items])), y


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_padding_that_changes_a_loss_is_refused(scale):
    loader, module = data.DataLoader(Ragged(), 8, collate_fn=padded), Last()
    for parameter in module.outer.parameters():  # a head of zeros hides it
        parameter.data *= scale
    with pytest.raises(ValueError, match=r"collate_fn that pads.*lengths or a mask"):
        EmpiricalRisk(module, "cross_entropy", loader)


class Energy(nn.Module):
    """A sum over atoms: rounding of float32 is not small beside its residuals."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
        self.inner[2].bias.data.fill_(-38.0)

    def forward(self, x, lengths):
        counts = torch.arange(x.shape[1]) < lengths.long()[:, None]
        return (self.inner(x)[..., 0] * counts).sum(1, keepdim=True)


def test_padding_that_changes_a_loss_by_rounding_is_taken():
    torch.manual_seed(0)
    module, atoms = Energy(), Ragged()
    energies = [
        module(x[None], torch.tensor([len(x)]))[0].detach() + 0.02 * torch.randn(1)
        for x in atoms.sequences
    ]

    class Molecules(Ragged):
        def __getitem__(self, i):
            return self.sequences[i], energies[i]

    def collate(items):
        x, y = zip(*items, strict=True)
        lengths = torch.tensor([len(one) for one in x])
        x = nn.utils.rnn.pad_sequence(list(x), batch_first=True)
        return (x, lengths), torch.stack(y)

    loader = data.DataLoader(Molecules(), 8, collate_fn=collate)
    risk = EmpiricalRisk(module, "squared_error", loader)
    assert float(risk.value(risk.params())) < 1e-3


@pytest.mark.parametrize("chunk_size", [None, 7, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_padding_that_the_module_leaves_out(chunk_size, dtype):
    module, examples = Last(), Ragged()
    losses = [
        nn.functional.cross_entropy(module(x[None]), torch.tensor([y]))
        for x, y in map(examples.__getitem__, range(len(examples)))
    ]
    loader = data.DataLoader(examples, 8, collate_fn=padded_with_lengths)
    options = {"chunk_size": chunk_size, "dtype": dtype}
    risk = EmpiricalRisk(module, "cross_entropy", loader, **options)
    right = torch.stack(losses).mean().to(risk.dtype)
    torch.testing.assert_close(risk.value(risk.params()), right, rtol=1e-5, atol=0)
