"""What the risk refuses: each message says what is required and what was got."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk, resolve_loss

from ._cases import Apply, mlp

X = torch.linspace(-1, 1, 20).view(5, 4)
LABELS = torch.tensor([0, 1, 2, 0, 1])
NUMBERS = torch.linspace(0, 1, 5)


def make(module=None, loss="cross_entropy", X=X, y=LABELS, **options):
    return EmpiricalRisk(mlp() if module is None else module, loss, X, y, **options)


def with_entry(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[1] = value
    return tensor


def frozen():
    return mlp().requires_grad_(False)


def norm(**options):
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, **options))


class Mean(nn.Module):
    def forward(self, outputs, y):
        return F.cross_entropy(outputs, y)


ones = torch.ones(5)

BAD = {
    # -- arrays of a kind
    "a mask": (
        {"X": np.ma.masked_less(np.asarray(X), 0)},
        ValueError,
        r"X must hold a value in each place.*10 masked.*filled",
    ),
    "a mask in y": (
        {"y": np.ma.masked_less(np.asarray(LABELS), 1)},
        ValueError,
        "y must hold",
    ),
    "a sparse tensor": ({"X": X.to_sparse()}, TypeError, "dense tensor.*to_dense"),
    "too large for the module": (
        {"X": with_entry(X.double(), 1e39)},
        ValueError,
        r"X must fit into torch.float32. Got numbers up to 1.0e\+39; scale them",
    ),
    "targets that are too large": (
        {"y": 1e39 * NUMBERS.double(), "module": mlp(1), "loss": "squared_error"},
        ValueError,
        "y must fit into torch.float32",
    ),
    # -- the module
    "no module": (
        {"module": "mlp"},
        TypeError,
        r"module must be a torch.nn.Module. Got 'mlp'",
    ),
    "a class": ({"module": nn.Linear}, TypeError, "must be a torch.nn.Module"),
    "nothing to train": (
        {"module": frozen()},
        ValueError,
        "no parameter with requires_grad=True.*Unfreeze",
    ),
    "lazy": (
        {"module": nn.LazyLinear(3)},
        ValueError,
        "lazy parameters.*Run one forward pass",
    ),
    "lazy buffers": (
        {"module": nn.Sequential(nn.Linear(4, 3), nn.LazyBatchNorm1d(affine=False))},
        ValueError,
        "lazy buffers.*Run one forward pass",
    ),
    "batch norm": (
        {"module": norm()},
        ValueError,
        r"'1' is a BatchNorm in train mode.*batch_norm='frozen'.*GroupNorm",
    ),
    "batch norm without statistics": (
        {"module": norm(track_running_stats=False).eval(), "batch_norm": "frozen"},
        ValueError,
        "'1' is a BatchNorm without running statistics.*GroupNorm",
    ),
    "option for batch norm": (
        {"batch_norm": "eval"},
        ValueError,
        "Unknown batch_norm 'eval'. There are: 'batch', 'error', 'frozen'",
    ),
    "a tuple without a tensor first": (
        {"module": Apply(lambda p, X: (None, p["a"](X)), a=nn.Linear(4, 3))},
        TypeError,
        "or a tuple.*Got tuple of NoneType, Tensor; pass output_transform",
    ),
    "no examples in the output": (
        {"module": nn.Sequential(mlp(), nn.Flatten(0))},
        ValueError,
        r"one output for each example.*Got shape \(3,\) for one example",
    ),
    "one number for all": (
        {"module": Apply(lambda p, X: p["a"](X).sum(), a=nn.Linear(4, 3))},
        ValueError,
        r"one output for each.*Got shape \(\) for one example; use squeeze\(-1\)",
    ),
    "detached": (
        {"output_transform": torch.Tensor.detach},
        ValueError,
        "must depend on a parameter.*detach",
    ),
    "device": (
        {"device": "cuda:77"},
        ValueError,
        "device must be one that PyTorch can use.*Got 'cuda:77'",
    ),
    "dtype": (
        {"dtype": torch.float16},
        ValueError,
        "'float32' or 'float64'. Got torch.float16; a module of another",
    ),
    "no device at all": ({"device": "gpu"}, ValueError, "'cpu' always is.*Got 'gpu'"),
    # -- the data
    "X does not fit": (
        {"X": X[:, :3]},
        ValueError,
        r"cannot take X of shape \(5, 3\) and dtype torch.float32",
    ),
    "X and y": (
        {"y": LABELS[:4]},
        ValueError,
        "as many examples. Got 5 and 4",
    ),
    "empty X": (
        {"X": X[:0], "y": LABELS[:0]},
        ValueError,
        r"X must hold at least one example.*Got shape \(0, 4\)",
    ),
    "a number for X": ({"X": 3.0}, ValueError, r"X must hold.*Got shape \(\)"),
    "NaN in X": (
        {"X": with_entry(X, torch.nan)},
        ValueError,
        "X contains NaN or infinity. Remove or impute",
    ),
    "infinity in X": (
        {"X": with_entry(X, -torch.inf).numpy()},
        ValueError,
        "X contains NaN or infinity",
    ),
    "NaN in y": (
        {
            "loss": "squared_error",
            "module": mlp(1),
            "y": with_entry(NUMBERS, torch.nan),
        },
        ValueError,
        "y contains NaN or infinity",
    ),
    "an iterable": (
        {"X": iter(X)},
        TypeError,
        "X must be an array of numbers.*Got .*iterator.*collect an iterable",
    ),
    "strings in y": (
        {"y": ["a", "b", "c", "a", "b"]},
        TypeError,
        "y must be an array of numbers.*encode labels",
    ),
    "no y": ({"y": None}, ValueError, "y must be given with arrays.*Got None"),
    "weights of another shape": (
        {"sample_weight": ones[:4]},
        ValueError,
        r"sample_weight must have shape \(5,\). Got \(4,\)",
    ),
    "NaN in weights": (
        {"sample_weight": with_entry(ones, torch.nan)},
        ValueError,
        "sample_weight contains NaN",
    ),
    "a negative weight": (
        {"sample_weight": with_entry(ones, -2.0)},
        ValueError,
        "sample_weight must not be negative. Got -2",
    ),
    "no weight": (
        {"sample_weight": np.zeros(5)},
        ValueError,
        "must have a positive sum",
    ),
    "chunk size": (
        {"chunk_size": 0},
        ValueError,
        "chunk_size must be an integer of at least 1. Got 0",
    ),
    "no whole chunk": (
        {"chunk_size": 2.0},
        ValueError,
        "chunk_size must be an integer of at least 1. Got 2.0",
    ),
    "no chunk size": (
        {"chunk_size": float("nan")},
        ValueError,
        "chunk_size must be an integer of at least 1. Got nan",
    ),
    "a word as chunk size": (
        {"chunk_size": "2"},
        ValueError,
        "chunk_size must be an integer of at least 1. Got '2'",
    ),
    # -- the loss
    "unknown loss": (
        {"loss": "cross_entrop"},
        ValueError,
        "Unknown loss 'cross_entrop'; did you mean 'cross_entropy'",
    ),
    "a class that needs arguments": (
        {"loss": nn.Linear},
        TypeError,
        "loss must be a name.*made without arguments. Got Linear.*Pass an instance",
    ),
    "no loss": ({"loss": 3}, TypeError, r"loss must be a name \(cross_entropy.*Got 3"),
    "label too large": (
        {"y": with_entry(LABELS, 3)},
        ValueError,
        "3 outputs can have labels 0 to 2. Got labels from 0 to 3.*4 outputs or encode",
    ),
    "label negative": (
        {"y": with_entry(LABELS, -1)},
        ValueError,
        "labels 0 to 2. Got labels from -1 to 2",
    ),
    "fractions for labels": (
        {"y": NUMBERS},
        ValueError,
        "needs class indices. Got values with fractions.*squared_error",
    ),
    "one logit": (
        {"module": mlp(1)},
        ValueError,
        r"at least two logits.*Got \('n', 1\).*binary_cross_entropy",
    ),
    "labels in columns": (
        {"y": LABELS[:, None]},
        ValueError,
        r"needs class indices of shape \('n',\). Got \('n', 1\)",
    ),
    "targets of another size": (
        {"loss": "squared_error", "y": NUMBERS},
        ValueError,
        r"one by one. Got outputs of shape \('n', 3\) and targets of shape \('n',\)",
    ),
    "targets of another order": (
        {
            "loss": "squared_error",
            "module": nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))),
            "y": torch.zeros(5, 3, 2),
        },
        ValueError,
        r"\('n', 2, 3\) and targets of shape \('n', 3, 2\)",
    ),
    "binary targets": (
        {"loss": "binary_cross_entropy", "module": mlp(1), "y": LABELS},
        ValueError,
        r"targets in \[0, 1\]. Got values from 0 to 2",
    ),
    "a mean": (
        {"loss": F.cross_entropy},
        ValueError,
        r"cross_entropy must return one number for each.*Got shape \(\) for n=2",
    ),
    "a mean, as a module": (
        {"loss": Mean()},
        ValueError,
        "Mean must return one number for each.*use reduction='none'",
    ),
    "broadcast": (
        {"loss": lambda f, y: (f - y) ** 2, "module": mlp(1), "y": NUMBERS},
        ValueError,
        r"Got shape \(2, 2\) for n=2 and \(3, 3\) for n=3.*outputs and targets of one",
    ),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_construction(options, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        make(**options)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.value(torch.zeros(3)), r"θ must have shape \(35,\).*Got \(3,\)"),
        (
            lambda r: r.gradient(torch.zeros(2, 36)),
            r"one chain. Got \(2, 36\)",
        ),
        (
            lambda r: r.gradient(torch.zeros(0, 35)),
            r"one chain. Got \(0, 35\)",
        ),
        (lambda r: r.linearize(torch.zeros(36)), r"Got \(36,\)"),
        (lambda r: r.squared_norms(torch.zeros(36)), r"Got \(36,\)"),
        (lambda r: r.gauss_newton_traces(torch.zeros(36), generator()), r"Got \(36,\)"),
        (
            lambda r: r.weighted_gradient(r.params(), torch.ones(4)),
            r"v must have shape \(5,\). Got \(4,\)",
        ),
    ],
)
def test_questions(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(make())


def test_θ_is_a_tensor():
    with pytest.raises(TypeError, match=r"θ must be a Tensor.*Got ndarray"):
        make().value(np.zeros(35))


def generator():
    return torch.Generator().manual_seed(0)


def test_gauss_newton_noise_needs_a_convex_loss():
    risk = make(
        loss=lambda f, y: (f - y).square().atan(), module=mlp(1), y=3 * X[:, :1]
    )
    theta = risk.params()
    risk.linearize(theta).ggn(theta)  # the matrix itself is there
    with pytest.raises(
        ValueError, match=r"convex in the output.*eigenvalue -.*gld_full"
    ):
        risk.value_and_gauss_newton_draw(theta, torch.tensor(1.0), generator())


def test_confident_predictions_are_not_mistaken_for_a_loss_that_is_not_convex():
    # In float32 the Hessian of a probability of 1 - 1e-8 is rounding.
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0, 1.0]))
    logits = 10 * torch.randn(100, 4, generator=generator())
    risk = make(nn.Linear(4, 4, bias=False), loss, X=logits, y=logits.argmax(1))
    theta = torch.eye(4).flatten()
    # E ‖ε‖² = Tr(G) = Σ w tr(diag p - ppᵀ) ‖x‖² / Σ w, for J = x ⊗ I.
    p, w = logits.double().softmax(1), loss.weight.double()[logits.argmax(1)]
    traces = (p * (1 - p)).sum(1) * logits.double().square().sum(1)
    rng, g_0 = generator(), risk.gradient(theta)
    draws = [
        risk.value_and_gauss_newton_draw(theta, torch.tensor(1.0), rng)[1] - g_0
        for _ in range(400)
    ]
    sizes = torch.stack(draws).double().square().sum(1)
    right, error = float(w @ traces / w.sum()), float(sizes.std() / 400**0.5)
    assert float(sizes.mean()) == pytest.approx(right, abs=4 * error)


def test_a_minibatch_without_examples():
    risk = make()
    with pytest.raises(ValueError, match="at least one example"):
        risk.batch_gradient(risk.params(), torch.tensor([], dtype=torch.long))


def test_a_loss_may_be_handed_through():
    loss = resolve_loss("squared_error")
    assert resolve_loss(loss) is loss


@pytest.mark.parametrize("dtype", [">f8", ">f4", np.longdouble, "<f4"])
def test_floating_numbers_of_any_kind(dtype):
    right = make(net := mlp())
    theta = right.params()
    found = make(net, X=X.numpy().astype(dtype))
    torch.testing.assert_close(found.value(theta), right.value(theta))
    big = make(net, y=LABELS.numpy().astype(">i4"), sample_weight=np.ones(5, ">f8"))
    assert big.value(theta) == right.value(theta)


@pytest.mark.parametrize("scale", [1e-300, 1e-8, 1e8, 1e307])
def test_only_ratios_of_weights_matter(scale):
    """A sum of weights that overflows made L 0."""
    weights = np.array([1.0, 2.0, 0.0, 3.0, 4.0])
    risk = make(net := mlp(), sample_weight=weights)
    same, theta = make(net, sample_weight=scale * weights), risk.params()
    torch.testing.assert_close(same.value(theta), risk.value(theta))


@pytest.mark.parametrize(
    ("X", "refused"),
    [
        (1.7e9 + np.arange(200.0), True),  # seconds of a clock
        (2**24 + np.arange(200) % 50, True),
        (2**24 + 2 * np.arange(200), False),  # float32 holds them
        (1e8 + np.arange(200.0), True),
        (1e8 + 1e5 * np.arange(200.0), False),
        (1 + 1e-16 * np.arange(200), False),  # a constant, but for rounding
        (np.full(200, 1e9), False),
        (np.array([0.0, 1e9] * 100), False),
    ],
)
def test_numbers_that_float32_does_not_tell_apart(X, refused):
    X, y = np.stack([np.linspace(0, 1, 200), X], 1), np.zeros((200, 1))

    def risks(**options):
        yield EmpiricalRisk(nn.Linear(2, 1), "squared_error", X, y, **options)
        targets = X[:, 1:].astype(float)
        yield EmpiricalRisk(nn.Linear(1, 1), "squared_error", y, targets, **options)

    if refused:
        with pytest.raises(ValueError, match=r"X must be told apart in torch\.float32"):
            next(risks())
        with pytest.raises(ValueError, match=r"y must be told apart .* centre them"):
            EmpiricalRisk(nn.Linear(1, 1), "squared_error", y, X[:, 1:].astype(float))
    else:
        assert len(list(risks())) == 2
    assert len(list(risks(dtype="float64"))) == 2
