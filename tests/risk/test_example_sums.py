"""Sums of squares layer by layer, against the rows of one example after the other."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from flatmin.risk import EmpiricalRisk
from flatmin.risk.data.opened_data import trial_indices
from flatmin.risk.example_sums import parameter_sums, sums
from flatmin.risk.example_sums.moments import mean_and_squares
from flatmin.risk.example_sums.parameter_sums import ParameterSums

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


def recurrent(kind, n_inputs=4, *, batch_first=True, **options):
    """A recurrent layer, which puts out more than its outputs."""
    layer = kind(n_inputs, 3, batch_first=batch_first, **options)

    def forward(p, X):
        if batch_first:
            return p["a"](X)[0]
        return p["a"](X.transpose(0, 1))[0].transpose(0, 1)

    return sequence(Apply(forward, a=layer))


def attention(forward, *, batch_first=True, **options):
    layer = nn.MultiheadAttention(4, 2, batch_first=batch_first, **options)
    return sequence(Apply(lambda p, X: forward(p["a"], X)[0], a=layer))


def packed(p, X):
    lengths = torch.full((len(X),), 4)
    whole = nn.utils.rnn.pack_padded_sequence(X, lengths, batch_first=True)
    outputs, _ = nn.utils.rnn.pad_packed_sequence(
        p["a"](whole)[0], batch_first=True, total_length=X.shape[1]
    )
    return outputs


def cells(kind):
    """A recurrent cell in a loop, from states of zero."""

    def forward(p, X):
        state = None
        for x in X.unbind(1):
            state = p["a"](x, state)
        return state[0] if kind is nn.LSTMCell else state

    return sequence(Apply(forward, a=kind(4, 3)))


class Bare(nn.Module):
    """A network of parameters without layers."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(4, 3))
        self.b = nn.Parameter(torch.randn(3))
        self.scale = nn.Parameter(torch.randn(()))
        self.out = nn.Parameter(torch.randn(2, 3))

    def forward(self, X):
        hidden = self.b + X @ self.W
        hidden *= self.scale.exp()
        hidden[:, 0] = hidden[:, 0].clone() * self.scale
        centred = self.out - self.out.mean(1, keepdim=True)
        return F.linear(hidden.tanh(), centred) / self.W.norm()


class Vision(nn.Module):
    """A class token and positions, as a parameter and by a table."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 9, 4))
        self.table = nn.Embedding(9, 4)
        self.norm = nn.RMSNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, X):
        X = torch.cat([self.token.expand(len(X), -1, -1), X], 1)
        places = torch.arange(X.shape[1], device=X.device)
        X = X + self.positions[:, : X.shape[1]] + self.table(places)
        return self.head(self.norm(X).tanh().mean(1))


class Rows(nn.Module):
    """Parameters broadcast over what may be as many as the examples."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.randn(1, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, X):
        return self.head((X + self.p.expand(X.shape[1], 4)).tanh().sum(1))


def steps_first(layer, X):
    X = X.transpose(0, 1)
    return (layer(X, X, X)[0].transpose(0, 1),)


def by_head(layer, X):
    outputs, weights = layer(X, X, X, average_attn_weights=False)
    return (torch.cat([outputs, *weights.unbind(1)], -1),)


def encoder(**options):
    options = {"nhead": 2, "dim_feedforward": 5, "batch_first": True, **options}
    layer = nn.TransformerEncoderLayer(4, **options)
    return sequence(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


images = torch.randn(N, 2, 9, 8)
series = torch.randn(N, 4, 10)
steps = torch.randn(N, 5, 4)
tokens = torch.randint(0, 9, (N, 6))
lstm = nn.LSTM(4, 4, batch_first=True)
MASK = torch.ones(5, 5, dtype=torch.bool).triu(1)
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
    # The odd row and column of padding come last.
    "Conv2d, same with even kernels": (
        sequence(nn.Conv2d(2, 2, (2, 4), padding="same")),
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
    "RMSNorm": (sequence(nn.RMSNorm(4)), steps),
    "PReLU": (sequence(nn.PReLU(), nn.Linear(4, 3), nn.PReLU()), torch.randn(N, 4)),
    "PReLU by channel": (sequence(nn.Conv2d(2, 3, 2), nn.PReLU(3)), images),
    "weight norm": (
        sequence(weight_norm(nn.Conv2d(2, 3, 2)), nn.ReLU(inplace=True)),
        images,
    ),
    "no layers": (Bare(), torch.randn(N, 4)),
    "tokens and positions": (Vision(), steps),
    "broadcast over steps": (Rows(), steps),
    "RNNCell": (cells(nn.RNNCell), steps),
    "LSTMCell": (cells(nn.LSTMCell), steps),
    "GRUCell": (cells(nn.GRUCell), steps),
    "RNN": (recurrent(nn.RNN), steps),
    "RNN, relu": (recurrent(nn.RNN, nonlinearity="relu", bias=False), steps),
    "LSTM": (recurrent(nn.LSTM), steps),
    "LSTM, both ways": (recurrent(nn.LSTM, bidirectional=True, num_layers=2), steps),
    "LSTM, steps first": (recurrent(nn.LSTM, batch_first=False, bias=False), steps),
    "LSTM called twice": (
        sequence(Apply(lambda p, X: p["a"](p["a"](X)[0])[0], a=lstm)),
        steps,
    ),
    "LSTM's last state": (
        sequence(Apply(lambda p, X: p["a"](X)[1][1].transpose(0, 1), a=lstm)),
        steps,
    ),
    "GRU": (recurrent(nn.GRU, num_layers=2), steps),
    "GRU, both ways": (recurrent(nn.GRU, bidirectional=True), steps),
    "attention": (attention(lambda a, X: a(X, X, X)), steps),
    "attention, steps first": (
        attention(steps_first, batch_first=False),
        steps,
    ),
    "attention to what came before": (
        attention(
            lambda a, X: a(X, X, X, attn_mask=MASK, need_weights=False), bias=False
        ),
        steps,
    ),
    "attention's weights": (
        attention(lambda a, X: (torch.cat(a(X, X, X), -1),)),
        steps,
    ),
    "attention's weights by head": (attention(by_head), steps),
    "attention without padding": (
        Apply(
            lambda p, X: p["out"](p["a"](p["words"](X), src_key_padding_mask=X == 4)),
            words=nn.Embedding(9, 4),
            a=nn.TransformerEncoderLayer(4, 2, 5, batch_first=True),
            out=nn.Sequential(nn.Flatten(), nn.Linear(24, 3)),
        ),
        tokens,
    ),
    "Transformer": (encoder(), steps),
    "Transformer, norm first": (encoder(norm_first=True, activation="gelu"), steps),
    "called twice": (residual(), images),
    "in-place ReLU": (
        sequence(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)),
        images,
    ),
}


PLAIN = {
    "LSTM that projects": (
        recurrent(nn.LSTM, proj_size=2),
        steps,
        "a recurrent layer that projects its states",
    ),
    "packed sequences": (sequence(Apply(packed, a=lstm)), steps, "packed sequences"),
    "attention to another sequence": (
        attention(lambda a, X: a(X, X.flip(1), X.flip(1))),
        steps,
        "attention to another sequence",
    ),
    "attention with further weights": (
        attention(lambda a, X: a(X, X, X), add_bias_kv=True),
        steps,
        "attention with further parameters",
    ),
    "attention to nothing": (
        attention(lambda a, X: a(X, X, X), add_zero_attn=True),
        steps,
        "attention with dropout, or to nothing",
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
# Chunks of 4, 5 and 6 have as many examples as others have steps or channels.
@pytest.mark.parametrize("chunk_size", [None, 4, 5, 6])
def test_every_layer(name, chunk_size):
    risk = check_against_rows(*LAYERS[name], chunk_size)
    if name == "broadcast over steps" and chunk_size in (5, 6):  # 11 = 6 + 5
        assert "depends on the examples" in risk.paths["per-example sums"]
    else:
        assert risk.paths["per-example sums"] == "by layer"


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", PLAIN)
def test_layers_in_settings_without_rows(name):
    module, X, reason = PLAIN[name]
    risk = check_against_rows(module, X, None)
    assert risk.paths["per-example sums"].startswith(f"reference: {reason}")


def one_by_one(module, X, y, weights=None):
    """Return the gradient of each example, from a batch of its own."""
    scale = torch.ones(len(X)) if weights is None else torch.as_tensor(weights)
    scale = len(X) * scale.double() / scale.double().sum()
    rows = []
    for i in range(len(X)):
        loss = scale[i] * F.cross_entropy(module(X[i : i + 1]), y[i : i + 1])
        gradient = torch.autograd.grad(
            loss, list(module.parameters()), allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(rows)


def check_against_rows(module, X, chunk_size):
    """Compare all sums over examples with those of one row after the other."""
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
    torch.testing.assert_close(value, risk.value(theta))
    torch.testing.assert_close(gradient, risk.gradient(theta))

    rows = one_by_one(module, X, y, weights)
    torch.testing.assert_close(torch.cat(list(risk.per_example_gradients(theta))), rows)
    torch.testing.assert_close(norms, rows.square().sum(1))
    torch.testing.assert_close(sums, rows.square().sum(0))
    torch.testing.assert_close(variances, rows.var(0, correction=0))
    batches = torch.randint(0, N, (5, 3))
    means = risk.batch_gradients(theta, batches)
    torch.testing.assert_close(means, rows[batches].mean(1))
    return risk


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("branching", "does not have the examples first"),
    ],
)
def test_the_plain_path_where_layers_do_not_tell(name, reason):
    risk = copy.deepcopy(make_risk(name))
    risk.squared_norms(problem(name).theta)
    assert risk.paths["per-example sums"].startswith("reference: ")
    assert reason in risk.paths["per-example sums"]


def test_a_subclass_that_does_more_than_its_layer():
    class Doubled(nn.Linear):
        def forward(self, X):
            return 2 * super().forward(X)

    X, y = torch.randn(N, 4).double(), torch.randint(0, 3, (N,))
    module = Doubled(4, 3).double()
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    rows = one_by_one(module, X, y)
    torch.testing.assert_close(risk.squared_norms(theta), rows.square().sum(1))


def test_a_common_gradient_a_hundred_thousand_times_the_spread():
    # Rows 1e5 + N(0, 1) in each coordinate: in float32 squares lose the spread.
    X = 1e5 + torch.randn(200, 3, dtype=torch.float64)
    module = nn.Linear(3, 1, bias=False).double()
    target = module(X) - 0.5  # a slope of one for everybody
    risk = EmpiricalRisk(module, "squared_error", X, target.detach())
    variances = risk.gradient_variances(risk.params())
    torch.testing.assert_close(variances, X.var(0, correction=0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("offset", [1e6, 1e8])
@pytest.mark.parametrize("chunk_size", [None, 1, 100])
@pytest.mark.parametrize("kind", ["column of ones", "token of all"])
def test_a_common_gradient_far_above_the_spread(kind, chunk_size, offset):
    """Rows 2(f - y)x of an intercept, or of a token that all examples have."""
    rng = torch.Generator().manual_seed(0)
    y = offset + torch.randn(300, generator=rng, dtype=torch.float64)
    if kind == "token of all":
        X = torch.zeros(300, 1, dtype=torch.long)
        module = nn.Sequential(nn.Embedding(3, 1), nn.Flatten(0)).double()
        design = nn.functional.one_hot(X[:, 0], 3).double()
    else:
        X = torch.ones(300, 2, dtype=torch.float64)
        X[:, 1].normal_(generator=rng)
        module, design = nn.Linear(2, 1, bias=False).double(), X
    risk = EmpiricalRisk(module, "squared_error", X, y, chunk_size=chunk_size)
    theta = risk.params()
    rows = 2 * (design @ theta - y)[:, None] * design
    torch.testing.assert_close(
        risk.gradient_variances(theta), rows.var(0, correction=0), rtol=1e-7, atol=0
    )


def test_one_example_has_no_spread():
    for dtype in ("float32", "float64"):
        X, y = torch.randn(1, 4), torch.tensor([1])
        module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        risk = EmpiricalRisk(module, "cross_entropy", X, y, dtype=dtype)
        assert not risk.gradient_variances(risk.params()).any()


class Filled(nn.Module):
    """A learned token in place of what is missing, which is so for few examples."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, 3)

    def forward(self, X):
        X = X.clone()
        X[X[:, 1] > 0.3] = self.token
        return self.head(X.tanh())


class LearnedStart(nn.Module):
    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(2, 1, 3))
        self.layer = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, X):
        h, c = self.start.repeat(1, len(X), 1).split(1)
        return self.head(self.layer(X[:, None].expand(-1, 9, -1), (h, c))[0][:, -1])


class Residual(nn.Module):
    """A small branch with an activation that works in place on a view."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, X):
        steps = X[:, None].expand(-1, 3, -1)
        steps = steps + 1e-6 * self.b(F.relu(self.a(steps), inplace=True))
        return self.head(steps.sum(1))


class Masked(nn.Module):
    """Masks that are not added to the scores, given to attention's function."""

    def __init__(self):
        super().__init__()
        self.lift, self.attention = nn.Linear(1, 4), nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, X):
        steps = self.lift(X[..., None]).transpose(0, 1)
        outputs, _ = F.multi_head_attention_forward(
            steps, steps, steps, 4, 2,
            self.attention.in_proj_weight, self.attention.in_proj_bias,
            None, None, False, 0.0,
            self.attention.out_proj.weight, self.attention.out_proj.bias,
            key_padding_mask=(X > 0.3) & (X.amax(1, keepdim=True) > X),
        )  # fmt: skip
        return self.head(outputs.transpose(0, 1).flatten(1))


def recurrent_by_hand(parts, X):
    state = torch.zeros(len(X), 4, dtype=X.dtype)
    for x in X.unbind(1):
        state = (parts["b"](state) + x[:, None]).tanh()
    return parts["a"](state)


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


def sorted_in_python(parts, X):
    order = torch.tensor(sorted(range(len(X)), key=X[:, 0].tolist().__getitem__))
    outputs = parts["b"](parts["a"](X[order]).tanh())
    return torch.zeros_like(outputs).index_copy(0, order, outputs)


def teacher(parts, X):
    with torch.no_grad():
        target = parts["a"](X)
    return parts["b"](parts["a"](X).tanh() + target)


class Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, X, W):
        ctx.save_for_backward(X, W)
        return X @ W

    @staticmethod
    def backward(ctx, slope):
        X, W = ctx.saved_tensors
        return slope @ W.T, X.T @ slope


class FrozenBasis(nn.Module):
    """A product of a constant and a parameter, as long as the chunk has examples."""

    def __init__(self):
        super().__init__()
        self.register_buffer("basis", torch.randn(4, 2))
        self.B = nn.Parameter(torch.randn(2, 3))

    def forward(self, X):
        return X @ (self.basis @ self.B)


class Overwritten(nn.Module):
    """A buffer that the examples are written to, by an argument."""

    def __init__(self):
        super().__init__()
        self.register_buffer("room", torch.zeros(N, 4))
        self.a, self.b = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 3))

    def forward(self, X):
        room = self.room[: len(X)]
        torch.mul(X.detach(), 2, out=room)
        return self.a(X).tanh() @ self.b + torch.addmm(self.b[0], room, self.b)


class Positions(nn.Module):
    """Positions of sequences as the rows of one product, in either order."""

    def __init__(self, by_example):
        super().__init__()
        self.by_example = by_example
        self.bias, self.weight = (
            nn.Parameter(torch.randn(shape)) for shape in ((3,), (4, 3))
        )

    def forward(self, X):
        sequence = torch.stack([X, X.sin(), X.cos()], 1 if self.by_example else 0)
        hidden = torch.addmm(self.bias, sequence.reshape(-1, 4), self.weight)
        shape = (len(X), 3, 3) if self.by_example else (3, len(X), 3)
        return hidden.view(shape).relu_().mean(1 if self.by_example else 0)


def rolled(parts, X):
    hidden = parts["a"](X.roll(4)).tanh()
    return parts["b"](hidden.roll(-4))


def seen_and_unseen(parts, X):
    hidden = parts["a"](X) + Matmul.apply(X.clamp(min=1) - 1, parts["a"].weight)
    return parts["b"](hidden.tanh())


def unseen(parts, X):
    return parts["b"](Matmul.apply(X, parts["a"].weight).tanh())


def two_layers(forward):
    return lambda: Apply(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3))


def with_scale():
    module = mlp(3)
    module[0].register_parameter("scale", nn.Parameter(torch.ones(())))
    return module


@pytest.mark.parametrize("chunk_size", [None, 4, 5])
def test_a_constant_with_as_many_rows_as_there_are_examples(chunk_size):
    check_against_rows(FrozenBasis(), torch.randn(N, 4), chunk_size)


def test_one_example_proves_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = two_layers(sorted_in_python)().double()
        X, y = torch.randn(N, 4).double(), torch.randint(0, 3, (N,))
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta, rows = risk.params(), one_by_one(module, X, y)
    norms = rows.square().sum(1)
    first = risk.subset(torch.tensor([0]))
    torch.testing.assert_close(first.squared_norms(theta), norms[:1])
    torch.testing.assert_close(risk.squared_norms(theta), norms)


def test_a_derived_weight_is_not_held_for_every_example():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.weight = nn.Parameter(torch.randn(3, 20000) / 100)

        def forward(self, X):
            return F.linear(X, self.scale * self.weight)

    X, y = torch.randn(64, 20000), torch.randint(0, 3, (64,))
    risk = EmpiricalRisk(Scaled(), "cross_entropy", X, y)
    theta = risk.params()
    risk.squared_norms(theta)
    largest = 0
    # As many numbers as the rows of all examples would have.
    real = torch.bmm

    def counted(a, b, **options):
        nonlocal largest
        result = real(a, b, **options)
        largest = max(largest, result.numel())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "bmm", counted)
        risk.squared_norms(theta)
    assert risk.paths["per-example sums"] == "by layer"
    assert 0 < largest < 64 * 60000 / 4


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
def test_examples_of_weight_zero_tell_nothing(weights):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = two_layers(sorted_in_python)().double()
        X, y = torch.randn(12, 4).double(), torch.randint(0, 3, (12,))
    risk = EmpiricalRisk(
        module, "cross_entropy", X, y, sample_weight=3 * weights, chunk_size=6
    )
    theta = risk.params()
    rows = one_by_one(module, X, y, 3 * weights)
    torch.testing.assert_close(risk.squared_norms(theta), rows.square().sum(1))
    assert "is off by" in risk.paths["per-example sums"]


def test_a_trial_is_made_on_examples_that_count():
    """None of them is among 16 that are spread over all 40."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = two_layers(sorted_in_python)().double()
        X, y = torch.randn(40, 4).double(), torch.randint(0, 3, (40,))
    weights = torch.zeros(40)
    weights[[1, 3, 4, 6]] = 1
    X[weights == 0, 0] = 0  # sorting leaves them where they are
    risk = EmpiricalRisk(module, "cross_entropy", X, y, sample_weight=weights)
    rows = one_by_one(module, X, y, weights)
    norms = risk.squared_norms(risk.params())
    torch.testing.assert_close(norms, rows.square().sum(1))
    assert "is off by" in risk.paths["per-example sums"]


def test_where_no_example_tells_the_next_does():
    X, y = torch.randn(9, 4), torch.arange(9) % 3
    weights = torch.tensor([0.0] * 4 + [1.0] * 5)
    risk = EmpiricalRisk(mlp(3), "cross_entropy", X, y, sample_weight=weights)
    theta = risk.params()
    silent = risk.subset(torch.arange(4))
    assert not silent.squared_norms(theta).any()
    assert risk.squared_norms(theta)[4:].all()
    assert risk.paths["per-example sums"] == "by layer"


def test_rows_that_are_not_finite_choose_no_kernel():
    """NaN is the same in every kernel: a wrong one would be taken untried."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Positions(by_example=False).double()
        X, y = torch.randn(12, 4).double(), torch.randint(0, 3, (12,))
    risk = EmpiricalRisk(module, "cross_entropy", X, y)
    theta = risk.params()
    assert risk.squared_norms(theta * torch.nan).isnan().all()
    rows = one_by_one(module, X, y)
    torch.testing.assert_close(risk.squared_norms(theta), rows.square().sum(1))
    assert "is off by" in risk.paths["per-example sums"]


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (with_hook, "by layer"),
        # Used behind the layer's back by examples that no trial sees.
        (two_layers(functional_use), "by layer"),
        (two_layers(sorted_use), "reference: argsort changes the order"),
        (two_layers(sorted_in_python), "reference: by layer is off by"),
        (two_layers(teacher), "by layer"),
        (two_layers(rolled), "reference: roll changes the order"),
        (Overwritten, "reference: a parameter in addmm"),
        (lambda: Positions(by_example=True), "by layer"),
        (lambda: Positions(by_example=False), "reference: by layer is off by"),
        (Filled, "reference: __setitem__ picks examples by their values"),
        (LearnedStart, "reference: a parameter in lstm that is no weight"),
        (Residual, "by layer"),
        (Masked, "by layer"),
        (
            lambda: Apply(recurrent_by_hand, a=nn.Linear(4, 3), b=nn.Linear(4, 4)),
            "by layer",
        ),
        (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3))), "by layer"),
        (with_scale, "by layer"),
        (two_layers(unseen), "reference: a parameter that is used out of sight"),
        (
            two_layers(seen_and_unseen),
            "reference: a parameter that is used out of sight",
        ),
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
    rows = one_by_one(module, X, y)
    torch.testing.assert_close(risk.squared_norms(theta), rows.square().sum(1))
    assert risk.paths["per-example sums"].startswith(path)
    batches = torch.arange(6).view(2, 3)
    means = risk.batch_gradients(theta, batches)
    torch.testing.assert_close(means, rows[:6].view(2, 3, -1).mean(1))
    value, gradient, variances = risk.value_gradient_and_variances(theta)
    torch.testing.assert_close(value, risk.value(theta))
    torch.testing.assert_close(gradient, rows.mean(0))
    torch.testing.assert_close(variances, rows.var(0, correction=0))


@pytest.mark.parametrize("quantity", ["batch_sums", "moments"])
@pytest.mark.parametrize("wrong_at", [None, 0, -1])
def test_large_parameters_are_tried_by_columns(wrong_at, quantity, monkeypatch):
    """Also those in the last columns, of which there are fewer."""
    monkeypatch.setattr(sums, "COLUMNS", 7)
    monkeypatch.setattr(parameter_sums, "COLUMNS", 5)
    right = getattr(ParameterSums, quantity)

    def off(part, *args):
        found = right(part, *args)
        if wrong_at is not None:
            (found if quantity == "batch_sums" else found[1])[..., wrong_at] += 0.1
        return found

    monkeypatch.setattr(ParameterSums, quantity, off)
    risk = check_against_rows(tied_language_model(), tokens, None)
    is_right = risk.paths["per-example sums"] == "by layer"
    assert is_right == (wrong_at is None)


def test_equal_gradients_spread_by_less_than_a_rounding():
    rng = torch.Generator().manual_seed(0)
    eps = torch.finfo(torch.float32).eps
    for n in range(2, 60):
        row = torch.randn(100, generator=rng)
        _, squares = mean_and_squares(row.expand(n, -1))
        assert squares.sum() <= n * eps**2 * row.square().sum()


def test_tokens_in_single_precision():
    module = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(18, 2))
    y = torch.zeros(N, dtype=torch.long)
    risk = EmpiricalRisk(module, "cross_entropy", tokens, y)
    risk.squared_norms(risk.params())
    assert risk.paths["per-example sums"] == "by layer"


class Routed(nn.Module):
    """Puts the examples into an order that it reads off a constant they were put in."""

    def __init__(self, write):
        super().__init__()
        self.write, self.layer = write, nn.Linear(3, 2)

    def forward(self, x):
        order = self.write(x)[:, 0].argsort(stable=True)
        return torch.tanh(self.layer(x[order]))[order.argsort()]


def with_or(x):
    marked = torch.zeros(len(x), 3, dtype=torch.bool)
    marked |= x > 0
    return marked.to(x.dtype)


def with_and(x):
    marked = torch.ones(len(x), 3, dtype=torch.bool)
    marked &= x > 0
    return marked.to(x.dtype)


def with_xor(x):
    marked = torch.zeros(len(x), 3, dtype=torch.bool)
    marked ^= x > 0
    return marked.to(x.dtype)


def with_power(x):
    base = torch.full((len(x), 3), 2, dtype=x.dtype)
    base **= x
    return base


def with_division(x):
    ones = torch.ones(len(x), 3, dtype=x.dtype)
    ones /= x
    return ones


def with_data(x):
    held = torch.zeros(len(x), 3, dtype=x.dtype)
    held.data = x
    return held


def with_data_items(x):
    held = torch.zeros(len(x), 3, dtype=x.dtype)
    held.data[:] = x
    return held


@pytest.mark.parametrize(
    "write",
    [
        with_or,
        with_and,
        with_xor,
        with_power,
        with_division,
        with_data,
        with_data_items,
    ],
)
def test_examples_that_are_written_into_a_constant(write):
    # The trial's examples lie in order already, so that it cannot tell.
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    tried = trial_indices(64)
    X[tried] = X[tried[write(X[tried])[:, 0].argsort(stable=True)]]
    module = Routed(write).double()
    risk = EmpiricalRisk(module, "squared_error", X, y)
    theta = risk.params()
    right = []
    for i in range(64):
        module.zero_grad()
        (module(X[i : i + 1]) - y[i : i + 1]).square().mean().backward()
        right.append(sum(p.grad.square().sum() for p in module.parameters()))
    torch.testing.assert_close(risk.squared_norms(theta), torch.stack(right))


class ByLength(nn.Module):
    """Sorts sequences by length in Python, as some do before they are packed."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, lengths):
        order = sorted(range(len(x)), key=lambda i: -int(lengths[i]))
        back = sorted(range(len(x)), key=order.__getitem__)
        in_order, mask = self.sorted(x, lengths, order)
        hidden = (self.layer(in_order).tanh() * mask[..., None]).sum(1)
        return self.restored(self.head(hidden), back)

    def sorted(self, x, lengths, order):
        return x[order], (torch.arange(x.shape[1]) < lengths[:, None])[order]

    def restored(self, outputs, back):
        return outputs[back]


class ByStack(ByLength):
    """The same, one example after the other."""

    def sorted(self, x, lengths, order):
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        return torch.stack([x[i] for i in order]), mask[order]

    def restored(self, outputs, back):
        rows = outputs.unbind()
        return torch.stack([rows[i] for i in back])


class ByMatrix(ByLength):
    """The same by a matrix of zeros and ones."""

    def sorted(self, x, lengths, order):
        permutation = torch.eye(len(x), dtype=x.dtype)[order]
        mask = (torch.arange(x.shape[1]) < lengths[:, None])[order]
        return torch.einsum("ij,jtk->itk", permutation, x), mask

    def restored(self, outputs, back):
        return torch.eye(len(outputs), dtype=outputs.dtype)[back] @ outputs


@pytest.mark.parametrize("kind", [ByLength, ByStack, ByMatrix])
@pytest.mark.parametrize("chunk_size", [60, 20])
def test_examples_out_of_order_that_no_trial_has_seen(kind, chunk_size):
    rng = torch.Generator().manual_seed(0)
    n = 60
    X = torch.randn(n, 5, 3, generator=rng, dtype=torch.float64)
    y = torch.randint(2, (n,), generator=rng)
    lengths = torch.full((n,), 5)
    short = [30, 41, 57]
    assert not set(short) & set(trial_indices(n).tolist())
    lengths[short] = torch.tensor([2, 3, 1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind().double()
    inputs = {"x": X, "lengths": lengths}
    risk = EmpiricalRisk(network, "cross_entropy", inputs, y, chunk_size=chunk_size)
    theta = risk.params()
    parameters = list(network.parameters())
    rows = []
    for i in range(n):
        outputs = network(X[i : i + 1], lengths[i : i + 1])
        slopes = torch.autograd.grad(F.cross_entropy(outputs, y[i : i + 1]), parameters)
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    rows = torch.stack(rows)
    torch.testing.assert_close(torch.cat([*risk.per_example_gradients(theta)]), rows)
    torch.testing.assert_close(risk.squared_norms(theta), rows.square().sum(1))
    assert "another order" in risk.paths["per-example sums"]


def test_examples_are_tried_once(monkeypatch):
    X, y = torch.randn(N, 4), torch.zeros(N, dtype=torch.long)
    risk = EmpiricalRisk(mlp(), "cross_entropy", X, y)
    theta, counted = risk.params(), []
    off = sums.slopes_off
    monkeypatch.setattr(
        sums, "slopes_off", lambda *given: counted.append(len(given[1])) or off(*given)
    )
    for _ in range(3):
        risk.squared_norms(theta)
    assert sum(counted) == N
