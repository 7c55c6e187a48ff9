"""Sums of squares layer by layer, against the rows of one example after the other."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk
from flatmin.risk.moments import mean_and_squares

from ._cases import Apply, batch_norm, make_risk, mlp, problem

N = 11


def sequence(*layers):
    """A network that ends in two numbers, whatever comes out of the layers."""
    return Apply(
        lambda p, X: p["head"](p["body"](X).flatten(1)),
        body=nn.Sequential(*layers),
        head=nn.LazyLinear(2),
    )


def residual():
    """A layer called twice, and its input overwritten by nobody."""
    layer = nn.Conv2d(2, 2, 3, padding=1)
    return sequence(Apply(lambda p, X: X + p["a"](p["a"](X).relu()), a=layer))


def tied_language_model():
    """An Embedding whose weight is the output layer's too."""
    words, out = nn.Embedding(9, 3), nn.Linear(3, 9, bias=False)
    out.weight = words.weight
    return Apply(lambda p, X: p["out"](p["words"](X).tanh()).mT, words=words, out=out)


images = torch.randn(N, 2, 9, 8)
series = torch.randn(N, 4, 10)
steps = torch.randn(N, 5, 4)
tokens = torch.randint(0, 9, (N, 6))
LAYERS = {
    "Linear": (mlp(2), torch.randn(N, 4)),
    "Linear over a sequence": (sequence(nn.Linear(4, 3), nn.Tanh()), steps),
    "Linear without bias": (sequence(nn.Linear(4, 3, bias=False)), torch.randn(N, 4)),
    "Conv2d": (sequence(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.ReLU()), images),
    "Conv2d, strided": (sequence(nn.Conv2d(2, 3, (3, 2), (2, 3), (1, 2))), images),
    "Conv2d, dilated": (sequence(nn.Conv2d(2, 3, (3, 2), dilation=(2, 3))), images),
    "Conv2d, groups": (
        sequence(nn.Conv2d(2, 6, 3, groups=2), nn.Tanh(), nn.Conv2d(6, 6, 2, groups=3)),
        images,
    ),
    "Conv2d, same": (
        sequence(nn.Conv2d(2, 2, (5, 3), padding="same", dilation=2)),
        images,
    ),
    "Conv2d, reflected": (
        sequence(nn.Conv2d(2, 2, 3, padding=(2, 1), padding_mode="reflect")),
        images,
    ),
    "Conv1d": (
        sequence(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.Tanh()),
        series,
    ),
    "Embedding": (sequence(nn.Embedding(9, 3)), tokens),
    "Embedding, padded": (sequence(nn.Embedding(9, 3, padding_idx=4)), tokens),
    "Embedding, tied": (tied_language_model(), tokens),
    "LayerNorm": (sequence(nn.Linear(4, 6), nn.LayerNorm(6)), steps),
    "LayerNorm over images": (sequence(nn.LayerNorm((9, 8))), images),
    "LayerNorm without bias": (sequence(nn.LayerNorm(4, bias=False)), steps),
    "GroupNorm": (sequence(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), images),
    "BatchNorm1d": (sequence(batch_norm(nn.BatchNorm1d, 4)), torch.randn(N, 4)),
    "BatchNorm1d over a series": (sequence(batch_norm(nn.BatchNorm1d, 4)), series),
    "BatchNorm2d": (sequence(batch_norm(nn.BatchNorm2d, 2)), images),
    "called twice": (residual(), images),
    "in-place ReLU": (
        sequence(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)),
        images,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_every_layer(name, chunk_size):
    module, X = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = copy.deepcopy(module)
        outputs = module(X)
        module = module.double().eval()
        for parameter in module.parameters():
            parameter.data.normal_()
        y = torch.randint(0, outputs.shape[1], (N, *outputs.shape[2:]))
        weights = torch.rand(N)
    X = X.double() if X.is_floating_point() else X
    risk = EmpiricalRisk(
        module, "cross_entropy", X, y, sample_weight=weights, chunk_size=chunk_size
    )
    theta = risk.params()
    norms, sums = risk.squared_norms(theta), risk.squared_gradient_sum(theta)
    value, gradient, variances = risk.value_gradient_and_variances(theta)
    assert risk.paths["per-example sums"] == "by layer"
    torch.testing.assert_close(value, risk.value(theta))
    torch.testing.assert_close(gradient, risk.gradient(theta))

    scale = N * weights.double() / weights.double().sum()
    parameters = list(module.parameters())
    rows = []
    for i in range(N):
        loss = F.cross_entropy(module(X[i : i + 1]), y[i : i + 1])
        gradient = torch.autograd.grad(scale[i] * loss, parameters)
        rows.append(torch.cat([g.flatten() for g in gradient]))
    rows = torch.stack(rows)
    torch.testing.assert_close(norms, rows.square().sum(1))
    torch.testing.assert_close(sums, rows.square().sum(0))
    torch.testing.assert_close(variances, rows.var(0, correction=0))
    batches = torch.randint(0, N, (5, 3))
    means = risk.batch_gradients(theta, batches)
    torch.testing.assert_close(means, rows[batches].mean(1))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tied", "outside of its layer"),
        ("LSTM", "the rows of LSTM"),
        ("transformer", "the rows of MultiheadAttention"),
        ("weight norm", "the rows of Parametri"),
        ("scalar parameter", "the rows of ScaledLinear"),
        ("branching", "does not have the examples first"),
    ],
)
def test_the_plain_path_where_layers_do_not_tell(name, reason):
    risk = copy.deepcopy(make_risk(name))
    risk.squared_norms(problem(name).theta)
    assert risk.paths["per-example sums"].startswith("plain: ")
    assert reason in risk.paths["per-example sums"]


def test_a_subclass_is_not_taken_for_its_layer():
    class Doubled(nn.Linear):
        def forward(self, X):
            return 2 * super().forward(X)

    X, y = torch.randn(N, 4), torch.randint(0, 3, (N,))
    risk = EmpiricalRisk(Doubled(4, 3), "cross_entropy", X, y)
    risk.squared_norms(risk.params())
    assert risk.paths["per-example sums"] == "plain: the rows of Doubled"


def test_a_common_gradient_a_hundred_thousand_times_the_spread():
    # Rows 1e5 + N(0, 1) in each coordinate: in float32 squares lose the spread.
    X = 1e5 + torch.randn(200, 3, dtype=torch.float64)
    module = nn.Linear(3, 1, bias=False).double()
    target = module(X) - 0.5  # a slope of one for everybody
    risk = EmpiricalRisk(module, "squared_error", X, target.detach())
    variances = risk.gradient_variances(risk.params())
    torch.testing.assert_close(variances, X.var(0, correction=0), rtol=1e-3, atol=0)


def test_a_pickled_risk_tries_anew():
    risk = copy.deepcopy(make_risk("mlp"))
    theta = problem("mlp").theta
    norms = risk.squared_norms(theta)
    copied = pickle.loads(pickle.dumps(risk))
    assert "per-example sums" not in copied.paths
    assert torch.equal(copied.squared_norms(theta), norms)


def with_hook():
    module = mlp(3)
    module[0].register_forward_hook(lambda layer, given, out: out.clamp(-0.5, 0.5))
    return module


def functional_use(parts, X):
    hidden = parts["a"](X).tanh()
    return parts["b"](hidden + F.linear(X.clamp(min=1) - 1, parts["a"].weight))


def sorted_use(parts, X):
    order = X[:, 0].argsort(descending=True)
    return parts["b"](parts["a"](X[order]).tanh())[order.argsort()]


def teacher(parts, X):
    with torch.no_grad():
        target = parts["a"](X)
    return parts["b"](parts["a"](X).tanh() + target)


def two_layers(forward):
    return lambda: Apply(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3))


def with_scale():
    module = mlp(3)
    module[0].register_parameter("scale", nn.Parameter(torch.ones(())))
    return module


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
def test_examples_of_weight_zero_tell_nothing(weights):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = two_layers(sorted_use)().double()
        X, y = torch.randn(12, 4).double(), torch.randint(0, 3, (12,))
    risk = EmpiricalRisk(
        module, "cross_entropy", X, y, sample_weight=3 * weights, chunk_size=6
    )
    theta = risk.params()
    rows = torch.cat(list(risk.per_example_gradients(theta)))
    torch.testing.assert_close(risk.squared_norms(theta), rows.square().sum(1))
    assert "is off by" in risk.paths["per-example sums"]


def test_where_no_example_tells_the_next_does():
    X, y = torch.randn(9, 4), torch.arange(9) % 3
    weights = torch.tensor([0.0] * 4 + [1.0] * 5)
    risk = EmpiricalRisk(mlp(3), "cross_entropy", X, y, sample_weight=weights)
    theta = risk.params()
    silent = risk.subset(torch.arange(4))
    assert not silent.squared_norms(theta).any()
    assert "per-example sums" not in risk.paths
    assert risk.squared_norms(theta)[4:].all()
    assert risk.paths["per-example sums"] == "by layer"


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (with_hook, "plain: the rows of Linear"),
        # Used behind the layer's back by examples that no trial sees.
        (two_layers(functional_use), "plain: a parameter in linear outside"),
        (two_layers(sorted_use), "plain: layer by layer is off by"),
        (two_layers(teacher), "by layer"),
        (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3))), "plain: the"),
        (with_scale, "plain: the rows of Linear"),
    ],
)
@pytest.mark.filterwarnings("ignore:The loss does not depend")
@pytest.mark.filterwarnings("ignore:.*spectral_norm")
def test_what_a_trial_on_three_examples_could_miss(make, path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().double().eval()
        X, y = torch.randn(N, 4).double(), torch.randint(0, 3, (N,))
    X[:3] = 0.1 * X[:3].sort(0, descending=True).values
    risk = EmpiricalRisk(module, "cross_entropy", X, y, chunk_size=7)
    theta = risk.params()
    rows = torch.cat(list(risk.per_example_gradients(theta)))
    torch.testing.assert_close(risk.squared_norms(theta), rows.square().sum(1))
    assert risk.paths["per-example sums"].startswith(path)
    batches = torch.arange(6).view(2, 3)
    means = risk.batch_gradients(theta, batches)
    torch.testing.assert_close(means, rows[:6].view(2, 3, -1).mean(1))
    value, gradient, variances = risk.value_gradient_and_variances(theta)
    torch.testing.assert_close(value, risk.value(theta))
    torch.testing.assert_close(gradient, rows.mean(0))
    torch.testing.assert_close(variances, rows.var(0, correction=0))


def test_equal_gradients_spread_by_less_than_a_rounding():
    rng = torch.Generator().manual_seed(0)
    eps = torch.finfo(torch.float32).eps
    for n in range(2, 60):
        row = torch.randn(100, generator=rng)
        _, squares = mean_and_squares(row.expand(n, -1))
        assert squares.sum() <= n * eps**2 * row.square().sum()
