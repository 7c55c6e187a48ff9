"""Examples that see each other are refused by name; those that do not are taken."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.modules import VGG11, LeNet
from flatmin.risk import EmpiricalRisk

from ._cases import Apply

N = 20
SEE_EACH_OTHER = r"output for one example must not depend on the others.*alone"


def net(forward, **parts):
    return Apply(forward, **{"a": nn.Linear(4, 5), "b": nn.Linear(5, 3), **parts})


def first_unchanged(p, x):
    """Only the last example sees another."""
    h = p["a"](x).tanh()
    return p["b"](torch.cat([h[:-1], h[-1:] + h[:1]]))


def capacity(p, x):
    """An expert takes four examples and drops the rest."""
    h = p["a"](x).tanh()
    place = (h[:, :1] > 0).long().cumsum(0)
    return p["b"](h * (place <= 4))


def weakly_centred(p, x):
    h = p["a"](x).tanh()
    return p["b"](h - 1e-3 * h.mean(0))


def last_step(p, x):
    return p["b"](p["lstm"](x)[0][:, -1])


def mixed(p, x):
    return p["b"](p["layer"](p["a"](x)).mean(1))


def seen():
    """Name -> module and X."""
    flat, sequence = torch.randn(N, 4), torch.randn(N, 6, 4)
    images = torch.randn(N, 1, 5, 5)

    def normed(p, x):
        return p["b"](
            F.batch_norm(p["conv"](x), None, None, training=True).tanh().flatten(1)
        )

    transformer = nn.TransformerEncoderLayer(5, 1, 7, dropout=0.0)
    return {
        "functional batch norm": (
            net(normed, conv=nn.Conv2d(1, 3, 3), b=nn.Linear(27, 3)),
            images,
        ),
        "centred": (net(lambda p, x: p["b"]((x := p["a"](x)) - x.mean(0))), flat),
        "weakly centred": (net(weakly_centred), flat),
        "the last only": (net(first_unchanged), flat),
        "capacity": (net(capacity), flat),
        "softmax over the batch": (
            net(lambda p, x: p["b"](p["a"](x).softmax(0))),
            flat,
        ),
        "LSTM, batch second": (net(last_step, lstm=nn.LSTM(4, 5)), sequence),
        "GRU, batch second": (net(last_step, lstm=nn.GRU(4, 5)), sequence),
        "transformer, batch second": (net(mixed, layer=transformer), sequence),
        "attention, batch second": (
            net(
                lambda p, x: p["b"](p["m"](*3 * [p["a"](x)])[0].mean(1)),
                m=nn.MultiheadAttention(5, 1),
            ),
            sequence,
        ),
        "largest of the batch": (
            net(lambda p, x: p["b"](p["a"](x) / x.abs().max())),
            flat,
        ),
    }


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make(module, X, loss="cross_entropy", y=None, **options):
    y = torch.arange(len(X)) % 3 if y is None else y
    return EmpiricalRisk(module, loss, X, y, **options)


@pytest.mark.parametrize("name", seen())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_examples_that_see_each_other(name, dtype):
    module, X = seen()[name]
    with pytest.raises(ValueError, match=SEE_EACH_OTHER):
        make(module.to(dtype), X.to(dtype))


def test_other_order():
    with pytest.raises(ValueError, match=r"in the order of X.*in another order"):
        make(net(lambda p, x: p["b"](p["a"](x).tanh()).flip(0)), torch.randn(N, 4))


def test_similarities_of_examples():
    """As of CLIP: one example has one number, which is no lack of logits."""
    module = Apply(lambda _, x: x @ x.T, a=nn.Linear(4, 4))
    with pytest.raises(ValueError, match="compares each example with every other"):
        EmpiricalRisk(module, "cross_entropy", torch.randn(6, 4), torch.arange(6))


def test_squeezed_outputs():
    module = nn.Sequential(
        nn.Linear(4, 1), Apply(lambda _, x: x.squeeze(), a=nn.Identity())
    )
    with pytest.raises(ValueError, match=r"squeeze|one output for each example"):
        make(module, torch.randn(N, 4), "squared_error", torch.randn(N))


def info_nce(outputs, y):
    z = F.normalize(outputs, dim=1)
    target = torch.arange(len(z)).roll(1)
    return F.cross_entropy(2 * z @ z.T, target, reduction="none")


def normalised(outputs, y):
    losses = F.cross_entropy(outputs, y, reduction="none")
    return losses / losses.detach().sum()


def ranked(outputs, y):
    return (outputs[:, 0] - outputs[:, 0].mean()).square()


@pytest.mark.parametrize("loss", [info_nce, normalised, ranked])
def test_losses_that_see_other_examples(loss):
    message = r"loss of one example must not depend on the others.*Contrastive"
    with pytest.raises(ValueError, match=message):
        make(net(lambda p, x: p["b"](p["a"](x))), torch.randn(N, 4), loss)


def regrouped(p, x):
    first = x[:, 0] > 0
    n = int(first.sum())
    h = p["a"](torch.cat([x[first], x[~first]])).tanh()
    back = torch.empty_like(h)
    back[first], back[~first] = h[:n], h[n:]
    return p["b"](back)


def regrouped_by_nonzero(p, x):
    one, other = (x[:, 0] > 0).nonzero()[:, 0], (x[:, 0] <= 0).nonzero()[:, 0]
    h = p["a"](torch.cat([x[one], x[other]])).tanh()
    return p["b"](h[torch.cat([one, other]).argsort()])


def regrouped_by_index_select(p, x):
    order = (x[:, 0] > 0).long().argsort(stable=True)
    h = p["a"](x.index_select(0, order)).tanh()
    return p["b"](torch.zeros_like(h).index_copy(0, order, h))


def regrouped_by_gather(p, x):
    order = (x[:, 0] > 0).long().argsort(stable=True)[:, None]
    h = p["a"](x.gather(0, order.expand_as(x))).tanh()
    return p["b"](torch.zeros_like(h).scatter(0, order.expand_as(h), h))


def regrouped_by_masked_select(p, x):
    first = (x[:, :1] > 0).expand_as(x)
    parts = x.masked_select(first).view(-1, 4), x.masked_select(~first).view(-1, 4)
    h = p["a"](torch.cat(parts)).tanh()
    rows = first[:, :1].expand_as(h)
    back = torch.zeros_like(h).masked_scatter(rows, h[: len(parts[0])])
    return p["b"](back.masked_scatter(~rows, h[len(parts[0]) :]))


def by_lengths(p, x):
    """The last step that counts, as language models pick it: nothing is regrouped."""
    steps = p["a"](x).tanh()
    last = (x[:, :, 0] > 0).sum(1).clamp(max=steps.shape[1] - 1)
    return p["b"](steps[torch.arange(len(x)), last])


REGROUPED = [
    regrouped,
    regrouped_by_nonzero,
    regrouped_by_index_select,
    regrouped_by_gather,
    regrouped_by_masked_select,
]


@pytest.mark.parametrize("forward", [*REGROUPED, by_lengths])
@pytest.mark.parametrize("rare", [False, True], ids=["half", "rare"])
def test_regrouping_that_returns_every_example(forward, rare):
    """Rows are of their own examples, where no trial has seen two groups, too."""
    shape = (40, 6, 4) if forward is by_lengths else (40, 4)
    X = torch.randn(shape, dtype=torch.float64)
    if rare:  # among the examples between those of a trial
        X[..., 0] = X[..., 0].abs()
        X[5:7, ..., 0] *= -1
    module = net(forward).double()
    risk = make(module, X)
    params, rows = list(module.parameters()), []
    for i in range(len(X)):
        loss = F.cross_entropy(module(X[i : i + 1]), torch.tensor([i % 3]))
        parts = torch.autograd.grad(loss, params)
        rows.append(torch.cat([part.flatten() for part in parts]))
    rows, theta = torch.stack(rows), risk.params()
    torch.testing.assert_close(torch.cat(list(risk.per_example_gradients(theta))), rows)
    torch.testing.assert_close(risk.squared_norms(theta), rows.square().sum(1))
    torch.testing.assert_close(
        risk.gradient_variances(theta), rows.var(0, correction=0)
    )
    path = risk.paths["per-example sums"]
    assert path == "by layer" if forward is by_lengths else path.startswith("reference")


@pytest.mark.parametrize("make_module", [LeNet, VGG11], ids=["LeNet", "VGG11"])
def test_deep_networks_in_single_precision_are_taken(make_module):
    side, channels = (28, 1) if make_module is LeNet else (32, 3)
    X = torch.randn(17, channels, side, side)
    assert make(make_module(), X).n_examples == 17


def test_cancellation_in_single_precision_is_no_fault():
    """Outputs that lose half their digits differ by as much in any batch."""

    def forward(p, x):
        return p["b"](3e3 + p["a"](x) - 3e3)

    assert make(net(forward), torch.randn(N, 4)).n_examples == N


def test_confident_predictions_are_taken():
    """A small loss has few digits; it is compared at the same outputs."""
    module = nn.Linear(3, 3)
    module.weight.data = 12 * torch.eye(3)
    module.bias.data.zero_()
    risk = make(module, torch.eye(3).repeat(6, 1))
    assert 0 < float(risk.value(risk.params())) < 2e-5


def test_one_example_has_nobody_to_see():
    X = torch.randn(1, 4)
    risk = make(net(lambda p, x: p["b"]((x := p["a"](x)) - x.mean(0))), X)
    assert risk.n_examples == 1


def over_positives(outputs, y):
    """RetinaNet divides its losses by the number of positives in the batch."""
    losses = F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(1)
    return losses / y.sum().clamp(min=1)


def hardest(outputs, y):
    """The 64 largest losses of a batch count."""
    losses = F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(1)
    kept = torch.zeros_like(losses)
    kept[losses.topk(min(64, len(losses))).indices] = 1
    return losses * kept


@pytest.mark.parametrize("loss", [over_positives, hardest])
def test_losses_that_see_more_than_a_few_others(loss):
    torch.manual_seed(0)
    X, y = torch.randn(200, 4), torch.zeros(200, 3)
    y[7::20, 0] = 1
    with pytest.raises(ValueError, match=r"normalise over the batch.*hardest"):
        EmpiricalRisk(nn.Linear(4, 3), loss, X, y)


@pytest.mark.parametrize("chunk_size", [None, 100])
@pytest.mark.parametrize("spot", [1234, 1999])
def test_one_example_that_is_unlike_the_others(chunk_size, spot):
    # A dark image among light ones: by itself it is taken for one of numbers below 1.
    torch.manual_seed(0)
    X, y = 255 * torch.rand(2000, 4).clamp(min=0.1), torch.arange(2000) % 3
    X[spot] = 1.0
    module = net(lambda p, x: p["b"](p["a"](x / 255 if x.max() > 1 else x)))
    with pytest.raises(ValueError, match=SEE_EACH_OTHER):
        EmpiricalRisk(module, "cross_entropy", X, y, chunk_size=chunk_size)
    X[spot] = 2.0
    EmpiricalRisk(module, "cross_entropy", X, y, chunk_size=chunk_size)


class Scaled(torch.autograd.Function):
    """A weight whose derivative is divided by how often an index is met."""

    @staticmethod
    def forward(ctx, weight, indices):
        ctx.save_for_backward(weight, indices)
        return weight[indices]

    @staticmethod
    def backward(ctx, slopes):
        weight, indices = ctx.saved_tensors
        counts = indices.bincount(minlength=len(weight)).to(weight)
        gradient = torch.zeros_like(weight).index_add(0, indices, slopes)
        return gradient / counts.clamp(min=1)[:, None], None


@pytest.mark.parametrize(
    "read",
    [
        lambda p, x: p["words"](x),
        lambda p, x: F.embedding(x, p["words"].weight, scale_grad_by_freq=True),
        lambda p, x: Scaled.apply(p["words"].weight, x),
    ],
)
def test_gradients_divided_by_how_often_an_index_is_met(read):
    # In the few examples of the trials every index comes once.
    X = torch.arange(200)
    X[1::2] = X[::2]
    words = nn.Embedding(200, 4, scale_grad_by_freq=True)
    module = net(lambda p, x: p["b"](p["a"](read(p, x)).tanh()), words=words)
    with pytest.raises(ValueError, match="gradient over several examples must be the"):
        EmpiricalRisk(module, "cross_entropy", X, torch.arange(200) % 3)


@pytest.mark.parametrize("has_outlier", [False, True])
def test_fitted_examples_see_no_others(has_outlier):
    # Their slopes are roundings, which add up to anything.
    eps = torch.finfo(torch.float64).eps
    for seed in range(12):
        torch.manual_seed(seed)
        X = torch.randn(12, 3).double()
        module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        y = module(X).detach() * (1 + 3 * eps * torch.randn(12, 1).double())
        y[seed] += has_outlier
        EmpiricalRisk(module, "squared_error", X, y)


def test_losses_that_cancel_in_single_precision_are_taken():
    torch.manual_seed(0)
    X, prototypes = torch.randn(100, 64) + 10, torch.randn(10, 64) + 10

    def distances(outputs, y):
        right = prototypes.to(outputs)[y]
        squares = outputs.square().sum(1), right.square().sum(1)
        return squares[0] - 2 * (outputs * right).sum(1) + squares[1]

    module = nn.Linear(64, 64, bias=False)
    nn.init.eye_(module.weight)
    EmpiricalRisk(module, distances, X, torch.arange(100) % 10)
