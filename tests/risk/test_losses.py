"""Losses beside PyTorch's own modules, on all data and example by example."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk, ModuleLoss, resolve_loss
from tests.oracles import dense, flat_parameters

pytestmark = pytest.mark.filterwarnings("ignore:The loss does not depend")
N, C = 12, 4
RNG = np.random.default_rng(0)


def close(found, right, tolerance=1e-9):
    found, right = torch.as_tensor(found).double(), torch.as_tensor(right).double()
    torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance)


def numbers(*shape, low=-1.0, high=1.0):
    return torch.as_tensor(RNG.uniform(low, high, shape))


X = numbers(N, 3)
LABELS = torch.as_tensor(RNG.integers(0, C, N))
POSITIONS = torch.as_tensor(RNG.integers(0, C, (N, 3)))
SOME_LEFT_OUT = LABELS.where(torch.arange(N) % 3 > 0, -100)
POSITIONS_LEFT_OUT = POSITIONS.where(numbers(N, 3) > 0, -100)
POSITIONS_LEFT_OUT[4] = -100
WEIGHT = torch.tensor([1.0, 2.0, 20.0, 0.5], dtype=torch.float64)
SIGNS = 2.0 * torch.as_tensor(RNG.integers(0, 2, (N, C))) - 1


class Net(nn.Module):
    def __init__(self, n_outputs=C, shape=None, last=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, n_outputs)
        self.shape, self.last = shape, last
        self.double()

    def forward(self, x):
        outputs = self.second(torch.tanh(self.first(x)))
        outputs = outputs if self.shape is None else outputs.unflatten(1, self.shape)
        return outputs if self.last is None else self.last(outputs)


def log_softmax(outputs):
    return outputs.log_softmax(1)


def simplex(*shape):
    return numbers(*shape).softmax(1)


SEQUENCE = {"n_outputs": C * 3, "shape": (C, 3)}
# The loss, its targets, the network, and what each target counts in PyTorch's mean.
RIGHT = {
    "cross-entropy": (nn.CrossEntropyLoss(), LABELS, {}, None),
    "class weights": (nn.CrossEntropyLoss(WEIGHT), LABELS, {}, WEIGHT[LABELS]),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), LABELS, {}, None),
    "weights, smoothing": (
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2),
        LABELS,
        {},
        WEIGHT[LABELS],
    ),
    "left out": (nn.CrossEntropyLoss(), SOME_LEFT_OUT, {}, SOME_LEFT_OUT >= 0),
    "a class left out, weights": (
        nn.CrossEntropyLoss(WEIGHT, ignore_index=2, label_smoothing=0.1),
        LABELS,
        {},
        WEIGHT[LABELS] * (LABELS != 2),
    ),
    "sequences": (nn.CrossEntropyLoss(), POSITIONS, SEQUENCE, None),
    "sequences, all": (
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2),
        POSITIONS_LEFT_OUT,
        SEQUENCE,
        WEIGHT[POSITIONS_LEFT_OUT.clamp(0)] * (POSITIONS_LEFT_OUT >= 0),
    ),
    "sequences, left out": (
        nn.CrossEntropyLoss(),
        POSITIONS_LEFT_OUT,
        SEQUENCE,
        POSITIONS_LEFT_OUT >= 0,
    ),
    "probabilities": (nn.CrossEntropyLoss(), simplex(N, C), {}, None),
    "probabilities, all": (
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2),
        simplex(N, C, 3),
        SEQUENCE,
        None,
    ),
    "nll": (nn.NLLLoss(), LABELS, {"last": log_softmax}, None),
    "nll, weights": (
        nn.NLLLoss(WEIGHT, ignore_index=1),
        LABELS,
        {"last": log_softmax},
        WEIGHT[LABELS] * (LABELS != 1),
    ),
    "nll, sequences": (
        nn.NLLLoss(WEIGHT),
        POSITIONS_LEFT_OUT,
        {**SEQUENCE, "last": log_softmax},
        WEIGHT[POSITIONS_LEFT_OUT.clamp(0)] * (POSITIONS_LEFT_OUT >= 0),
    ),
    "mse": (nn.MSELoss(), numbers(N, C), {}, None),
    "l1": (nn.L1Loss(), numbers(N, C), {}, None),
    "smooth l1": (nn.SmoothL1Loss(beta=0.5), numbers(N, C), {}, None),
    "huber": (nn.HuberLoss(delta=0.5), numbers(N, C), {}, None),
    "poisson": (nn.PoissonNLLLoss(), numbers(N, C, low=0, high=3).round(), {}, None),
    "poisson, full": (
        nn.PoissonNLLLoss(full=True),
        numbers(N, C, low=0, high=5).round(),
        {},
        None,
    ),
    "kl": (nn.KLDivLoss(), simplex(N, C), {"last": log_softmax}, None),
    "kl, batchmean": (
        nn.KLDivLoss(reduction="batchmean"),
        simplex(N, C),
        {"last": log_softmax},
        None,
    ),
    "bce": (nn.BCELoss(), numbers(N, C, low=0), {"last": torch.sigmoid}, None),
    "bce, weight": (
        nn.BCELoss(WEIGHT),
        numbers(N, C, low=0),
        {"last": torch.sigmoid},
        None,
    ),
    "bce logits": (nn.BCEWithLogitsLoss(), numbers(N, C, low=0), {}, None),
    "bce logits, weights": (
        nn.BCEWithLogitsLoss(WEIGHT, pos_weight=WEIGHT.flip(0)),
        numbers(N, C, low=0),
        {},
        None,
    ),
    "soft margin": (nn.SoftMarginLoss(), SIGNS, {}, None),
    "hinge embedding": (nn.HingeEmbeddingLoss(), SIGNS, {}, None),
    "multi-label soft margin": (
        nn.MultiLabelSoftMarginLoss(WEIGHT),
        (SIGNS + 1) / 2,
        {},
        None,
    ),
    "multi margin": (nn.MultiMarginLoss(weight=WEIGHT), LABELS, {}, None),
    "multi margin, squares": (nn.MultiMarginLoss(p=2, margin=3.0), LABELS, {}, None),
    "multi-label margin": (
        nn.MultiLabelMarginLoss(),
        torch.stack([LABELS, *(-torch.ones(3, N).long())], 1),
        {},
        None,
    ),
}


def margins(p, margin, weight):
    """Return a multi-margin loss in functions that can be differentiated twice."""

    def losses(outputs, y):
        own = outputs.gather(1, y[:, :1])
        gaps = (margin - own + outputs).clamp(min=0) ** p
        others = gaps.sum(1) - margin**p
        return weight[y[:, 0]] * others / outputs.shape[1]

    return losses


# PyTorch has no second derivatives of these.
SPELLED_OUT = {
    "multi margin": margins(1, 1.0, WEIGHT),
    "multi margin, squares": margins(2, 3.0, torch.ones(C)),
    "multi-label margin": margins(1, 1.0, torch.ones(C)),
}


def with_reduction(loss, reduction):
    loss = copy.deepcopy(loss)
    loss.reduction = reduction
    return loss


def numerators(name):
    """Return one example's part in the sum that PyTorch's mean divides."""
    loss, _, _, counts = RIGHT[name]
    none = with_reduction(loss, "none")

    def losses(outputs, y):
        if name in SPELLED_OUT:
            return SPELLED_OUT[name](outputs, y.view(len(y), -1))
        values = none(outputs, y).reshape(len(y), -1)
        is_sum = loss.reduction == "batchmean" or counts is not None
        return values.sum(1) if is_sum else values.mean(1)

    return losses


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("reduction", ["default", "sum", "none"])
@pytest.mark.parametrize("name", RIGHT)
def test_on_all_data_it_is_what_pytorch_gives(name, reduction):
    loss, y, net, _ = RIGHT[name]
    if reduction != "default" and loss.reduction == "batchmean":
        return  # its sum and its mean are other losses
    module = Net(**net)
    right = loss(module(X), y)
    asked = loss if reduction == "default" else with_reduction(loss, reduction)
    risk = EmpiricalRisk(module, asked, X, y, chunk_size=5)
    theta = risk.params()
    close(risk.value(theta), right.detach())
    gradient = torch.autograd.grad(right, list(module.parameters()))
    close(risk.gradient(theta), torch.cat([g.flatten() for g in gradient]))


@pytest.mark.parametrize("name", RIGHT)
def test_everything_else_follows(name):
    loss, y, net, counts = RIGHT[name]
    module = Net(**net)
    s = numbers(N, low=0.5, high=3.0)
    w = torch.ones(N) if counts is None else counts.double().reshape(N, -1).sum(1)
    divisor, own = (s * w).sum() / s.sum(), numerators(name)

    def losses(outputs, y):
        return own(outputs, y) / divisor

    expected = dense(module, losses, X, y, flat_parameters(module), weights=s)
    risk = EmpiricalRisk(module, loss, X, y, chunk_size=5, sample_weight=s)
    theta = risk.params()
    v = numbers(len(theta))
    close(risk.value(theta), expected.value)
    close(torch.cat(list(risk.per_example_gradients(theta))), expected.gradients)
    close(risk.gradient_variances(theta), expected.covariance.diag())
    point = risk.linearize(theta)
    close(point.hvp(v), expected.hessian @ v, 1e-8)
    close(point.ggn(v), expected.gauss_newton @ v, 1e-8)
    close(point.directional_derivatives(v), expected.gradients @ v)
    traces = torch.stack([G.trace() for G in expected.gauss_newtons])
    close(risk.gauss_newton_traces(theta), traces, 1e-8)
    some = risk.subset(torch.tensor([3, 7, 7]))
    close(some.value(theta), expected.losses[[3, 7, 7]].mean())
    moved = some.to(dtype="float32").to(dtype="float64")
    close(moved.value(theta), some.value(theta), 1e-5)


LIKELIHOODS = [
    name for name, case in RIGHT.items() if type(case[0]).__name__[:5] == "Cross"
]


N_DRAWS = 4000


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_slopes_of_drawn_targets_have_the_hessian_as_second_moment(name):
    loss, y, net, _ = RIGHT[name]
    outputs = Net(**net)(X)[3:4].detach()
    example_loss = resolve_loss(loss)
    target = example_loss.prepare_targets(y, outputs)[3:4]
    slopes = example_loss.model_slope(
        outputs.repeat_interleave(N_DRAWS, 0),
        target.repeat_interleave(N_DRAWS, 0),
        torch.Generator().manual_seed(0),
    ).flatten(1)
    right = output_hessian(example_loss, outputs, target)
    error = slopes.T @ slopes / N_DRAWS - right
    assert error.norm() < 0.08 * right.norm() + 1e-12


def output_hessian(loss, outputs, targets):
    """Return the Hessian of one example's loss in its outputs, by plain autograd."""
    numel = outputs.numel()
    return torch.autograd.functional.hessian(
        lambda f: loss.per_example(f.view(outputs.shape), targets)[0],
        outputs.reshape(-1),
    ).view(numel, numel)


def coupled(f, y):
    return (
        f.flatten(1).sum(1) ** 2 + (f.flatten(1) - y) ** 2 @ torch.ones(12).to(f)
    ) / 2


ROOTS = {
    "elements": (lambda f, y: F.huber_loss(f, y, reduction="none"), numbers(2, 3, 4)),
    "classes first": (
        lambda f, y: F.cross_entropy(f, y, reduction="none"),
        torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]]),
    ),
    "classes last": (
        lambda f, y: F.cross_entropy(f.movedim(-1, 1), y, reduction="none"),
        torch.tensor([[0, 1, 3], [2, 3, 1]]),
    ),
    "one block": (coupled, numbers(2, 12)),
    "linear": (lambda f, y: (f * y).sum((1, 2)), numbers(2, 3, 4)),
}


@pytest.mark.parametrize("name", ROOTS)
def test_roots_come_in_blocks(name):
    function, y = ROOTS[name]
    loss, outputs = resolve_loss(function), numbers(2, 3, 4)
    units = torch.eye(12, dtype=torch.float64).view(12, 1, 3, 4).expand(12, 2, 3, 4)
    S = torch.stack([loss.root_product(outputs, y, z) for z in units]).flatten(2)
    for i in range(2):
        right = output_hessian(loss, outputs[i : i + 1], y[i : i + 1])
        close(S[:, i].T @ S[:, i], right)
        u = numbers(2, 3, 4)
        found = loss.hessian_product(outputs, y, u)[i]
        close(found.flatten(), right @ u[i].flatten())


def test_long_sequences_need_no_matrix_of_all_outputs():
    # 8000 numbers an output: its Hessian would take half a gigabyte an example.
    outputs, y = numbers(2, 20, 400), torch.as_tensor(RNG.integers(0, 20, (2, 400)))
    loss = resolve_loss(lambda f, y: F.cross_entropy(f, y, reduction="none"))
    named = resolve_loss("cross_entropy")
    u = numbers(2, 20, 400)
    found = loss.hessian_product(outputs, y, u)
    close(found, named.hessian_product(outputs, y, u))
    total = torch.zeros_like(u)
    for unit in torch.eye(20).double():  # H u = Σ S_k (S_kᵀu) at each position
        column = loss.root_product(outputs, y, unit.view(1, 20, 1).expand(2, 20, 400))
        total += column * (column * u).sum(1, keepdim=True)
    close(total, found)


def test_signs_of_a_triangular_root_vary_little():
    """Over all signs, ‖Sz‖² has the mean Tr(H), and less variance than by √p."""
    loss = resolve_loss("cross_entropy")
    outputs, y = numbers(1, 6), torch.tensor([2])
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6))).double()
    p = outputs.softmax(1)[0]
    trace = (p * (1 - p)).sum()
    spreads = []
    for product in (loss.sign_product, loss.root_product):
        norms = product(outputs.expand(64, 6), y.expand(64), signs).square().sum(1)
        close(norms.mean(), trace)
        spreads.append(float(norms.var(correction=0)))
    assert spreads[0] < spreads[1] / 3


def test_half_precision_sums_in_full():
    outputs, y = numbers(3, 500), torch.tensor([0, 1, 2])
    loss, z = resolve_loss("cross_entropy"), numbers(3, 500).sign()
    right = loss.sign_product(outputs.bfloat16().double(), y, z)
    found = loss.sign_product(outputs.bfloat16(), y, z.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), right, rtol=0.01, atol=1e-6)


def test_a_root_without_blocks_is_refused_above_a_size():
    loss = resolve_loss(lambda f, y: (f.sum(1) - y) ** 2 + f.square().sum(1))
    outputs, y = numbers(2, 1500), numbers(2)
    close(
        loss.hessian_product(outputs, y, torch.ones_like(outputs)),
        torch.full_like(outputs, 2 * 1500 + 2),
    )
    with pytest.raises(ValueError, match=r"1500 outputs.*at most 1024.*gld_full"):
        loss.root_product(outputs, y, outputs)


def test_a_loss_that_looks_at_its_values():
    def loss(outputs, y):
        variance = outputs[:, 1].exp()
        return F.gaussian_nll_loss(outputs[:, 0], y, variance, reduction="none")

    y = X.sum(1)
    module = Net(2)
    risk = EmpiricalRisk(module, loss, X, y)
    theta = risk.params()
    expected = dense(module, loss, X, y, theta)
    v = numbers(len(theta))
    close(risk.linearize(theta).ggn(v), expected.gauss_newton @ v)
    close(torch.cat(list(risk.per_example_gradients(theta))), expected.gradients)


def rows_of(module, loss, y):
    """Return the gradient of each example's loss, by one backward pass an example."""
    rows = []
    for x, target in zip(X.split(1), y.split(1), strict=True):
        one = loss(module(x), target).sum()
        parts = torch.autograd.grad(one, tuple(module.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


class WithoutSecond(torch.autograd.Function):
    """A fourth power whose backward pass takes the slope for a constant."""

    @staticmethod
    def forward(ctx, f, y):
        ctx.slope = (4 * (f.numpy(force=True) - y.numpy(force=True)) ** 3).tolist()
        return ((f - y) ** 4).sum(1)

    @staticmethod
    def backward(ctx, g):
        return g[:, None] * torch.tensor(ctx.slope, dtype=g.dtype), None


def ctc(outputs, y):
    log_p = outputs.unflatten(1, (2, 2)).log_softmax(2).movedim(0, 1)
    lengths = torch.full((len(y),), 2), torch.full((len(y),), 1)
    return F.ctc_loss(log_p, y, *lengths, reduction="none")


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        (WithoutSecond.apply, numbers(N, C), "apply.*differs from differences"),
        (ctc, torch.ones(N, 1).long(), "of ctc in the outputs.*_ctc_loss_backward"),
    ],
)
def test_a_second_derivative_that_is_not_there(loss, y, message):
    module = Net()
    risk = EmpiricalRisk(module, loss, X, y)
    theta = risk.params()
    rows = rows_of(module, loss, y)
    close(risk.gradient_variances(theta), rows.var(0, correction=0), 1e-6)
    with pytest.raises(ValueError, match=f"{message}.*gld_full"):
        risk.linearize(theta).ggn(theta)


def test_a_jump_of_the_second_derivative_is_no_fault():
    """Outputs of 0 and 0.5 beside targets of 1: |f - y| = 1, where Huber's H jumps."""
    net = nn.Linear(3, C, bias=False).double()
    X = torch.zeros(N, 3, dtype=torch.float64)
    X[::2] = 1.0
    with torch.no_grad():
        net.weight.fill_(0.5 / 3)
    risk = EmpiricalRisk(net, nn.HuberLoss(), X, torch.ones(N, C).double())
    G = risk.gauss_newton_traces(risk.params())
    # d²/df² is 1 at |f - y| = .5, over C outputs; Tr Gᵢ = Σ (1/C) ‖xᵢ‖².
    close(G[::2], torch.full((N // 2,), 3.0, dtype=torch.float64))
    assert (G[1::2] == 0).all()


def test_what_a_loss_detaches_is_held():
    def focal(outputs, y):
        losses = F.cross_entropy(outputs, y, reduction="none")
        return losses.detach() * losses

    loss, outputs = resolve_loss(focal), numbers(N, C)
    u = numbers(N, C)
    plain = F.cross_entropy(outputs, LABELS, reduction="none")
    right = resolve_loss("cross_entropy").hessian_product(outputs, LABELS, u)
    close(loss.hessian_product(outputs, LABELS, u), plain[:, None] * right)


ONE = Net(1)
ELEMENTWISE = [
    nn.HuberLoss(),
    nn.L1Loss(),
    nn.SmoothL1Loss(),
    nn.PoissonNLLLoss(),
    nn.SoftMarginLoss(),
    nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)),
]


@pytest.mark.parametrize("loss", ELEMENTWISE, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("column", [False, True])
def test_one_output_and_flat_targets(loss, column):
    # Never (n,) against (n, 1), which broadcasts to (n, n).
    y = numbers(N, low=0)
    right = loss(ONE(X)[:, 0], y).detach()
    squeezed = Net(1, last=lambda outputs: outputs.squeeze(-1))
    module, y = (squeezed, y[:, None]) if column else (ONE, y)
    risk = EmpiricalRisk(module, loss, X, y)
    close(risk.value(risk.params()), right, 1e-6)


@pytest.mark.parametrize(
    "dtype",
    ["uint8", "int8", "int16", "int32", "uint16", "uint32", "uint64", "float32"],
)
def test_labels_of_any_number_type(dtype):
    risk = EmpiricalRisk(Net(), "cross_entropy", X, LABELS.to(getattr(torch, dtype)))
    close(risk.value(risk.params()), F.cross_entropy(Net()(X), LABELS).detach())


def test_masked_classes():
    mask = torch.tensor([0.0, 0.0, -torch.inf, 0.0])
    y = LABELS.where(LABELS != 2, 0)
    masked = Net(last=lambda outputs: outputs + mask)
    keep = [0, 1, 3]
    without = Net(last=lambda outputs: outputs[:, keep])
    for loss, other, targets in [
        ("cross_entropy", "cross_entropy", (y, y.where(y < 3, 2))),
        (
            nn.CrossEntropyLoss(WEIGHT),
            nn.CrossEntropyLoss(WEIGHT[keep]),
            (y, y.where(y < 3, 2)),
        ),
        (
            "cross_entropy",
            "cross_entropy",
            (F.one_hot(y, 4).double(), F.one_hot(y, 4)[:, keep].double()),
        ),
    ]:
        a = EmpiricalRisk(masked, loss, X, targets[0])
        b = EmpiricalRisk(without, other, X, targets[1])
        theta = a.params()
        v = numbers(len(theta))
        close(a.value(theta), b.value(theta))
        close(a.gradient(theta), b.gradient(theta))
        close(a.linearize(theta).hvp(v), b.linearize(theta).hvp(v))
        close(a.linearize(theta).ggn(v), b.linearize(theta).ggn(v))
        close(a.gauss_newton_traces(theta), b.gauss_newton_traces(theta))
        # E ‖ε‖² = Tr(G).
        rng, one, g_0 = generator(), theta.new_ones(()), b.gradient(theta)
        draws = [
            a.value_and_gauss_newton_draw(theta, one, rng)[1] - g_0 for _ in range(300)
        ]
        sizes = torch.stack(draws).square().sum(1)
        right = float(b.gauss_newton_traces(theta).mean())
        assert float(sizes.mean()) == pytest.approx(
            right, abs=4 * float(sizes.std()) / 300**0.5
        )


def generator():
    return torch.Generator().manual_seed(0)


def test_targets_of_a_stream_are_read_before():
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, i):
            return X[i], SOME_LEFT_OUT[i]

    loss = nn.CrossEntropyLoss(WEIGHT)
    held = EmpiricalRisk(Net(), loss, X, SOME_LEFT_OUT, chunk_size=5)
    stream = EmpiricalRisk(Net(), loss, Pairs(), chunk_size=5)
    theta = held.params()
    for risk in (stream, stream.to(dtype="float32").to(dtype="float64")):
        close(risk.value(theta), held.value(theta), 1e-6)
        close(risk.gradient_variances(theta), held.gradient_variances(theta), 1e-6)


class OwnMean(nn.CrossEntropyLoss):
    def forward(self, outputs, y):
        return super().forward(outputs, y)


def raises_without_a_word(outputs, y):
    raise ValueError


REFUSED = {
    "no message": (raises_without_a_word, LABELS, "It raised ValueError: ValueError."),
    "three arguments": (nn.GaussianNLLLoss(), LABELS, "loss.outputs, targets.*'var'"),
    "lengths": (nn.CTCLoss(), LABELS, "'input_lengths' and 'target_lengths'"),
    "parameters": (
        nn.AdaptiveLogSoftmaxWithLoss(C, 5, [2]),
        LABELS,
        "parameters to train.*requires_grad_",
    ),
    "no tensor": (
        nn.AdaptiveLogSoftmaxWithLoss(C, 5, [2]).requires_grad_(False),
        LABELS,
        "must return a Tensor.*ASMoutput",
    ),
    "nothing counts": (
        nn.CrossEntropyLoss(),
        torch.full((N,), -100),
        "At least one target must count",
    ),
    "a class of weight 0, smoothed": (
        nn.CrossEntropyLoss(torch.tensor([0.0, 1, 1, 1]), label_smoothing=0.1),
        LABELS,
        "label smoothing a class of weight 0.*Leave those examples out",
    ),
    "too few weights": (
        nn.CrossEntropyLoss(torch.ones(2)),
        LABELS,
        r"shape \(4,\).*Got \(2,\)",
    ),
    "negative weights": (
        nn.NLLLoss(torch.tensor([1.0, -1, 1, 1])),
        LABELS,
        "finite and not negative",
    ),
    "a mean of its own": (
        OwnMean(WEIGHT),
        LABELS,
        "OwnMean averages in a way of its own.*sample_weight",
    ),
    "a weight for each example": (
        nn.BCELoss(torch.ones(N, 1)),
        numbers(N, C, low=0),
        "weight for each example is passed as sample_weight",
    ),
    "below zero": (
        "cross_entropy",
        LABELS.where(LABELS > 0, -1),
        r"labels from -1 to 3.*left out -100.*nn.CrossEntropyLoss\(ignore_index",
    ),
    "one-hot integers": (
        nn.CrossEntropyLoss(),
        F.one_hot(LABELS, C),
        "class probabilities have the outputs' shape and a floating dtype",
    ),
    "an index left out of probabilities": (
        nn.CrossEntropyLoss(ignore_index=1),
        simplex(N, C),
        "ignore_index belongs to class indices",
    ),
    "out of range": (
        nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
        SIGNS,
        r"targets in \[0, 1\]. Got values from -1 to 1",
    ),
}


@pytest.mark.parametrize(("loss", "y", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(loss, y, message):
    last = torch.sigmoid if isinstance(loss, nn.BCELoss) else None
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        EmpiricalRisk(Net(last=last), loss, X, y)


class Rotated(nn.Module):
    """Σ |f_c w_c - i|² of complex w, with a ``to`` of another signature."""

    def __init__(self):
        super().__init__()
        w = torch.tensor([1 + 2j, 0.5 - 1j, 3j, 1], dtype=torch.complex64)
        self.register_buffer("w", w)

    def to(self, place):
        raise AssertionError

    def forward(self, outputs, y):
        return (outputs * self.w - 1j).abs().square().sum(1) * self.w.imag.sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_complex_buffers_of_a_loss_stay_complex(dtype):
    net, loss = Net(), Rotated()
    risk = EmpiricalRisk(net, loss, X, LABELS, dtype=dtype)
    right = loss(net(X), LABELS).mean().detach()
    close(risk.value(risk.params()), right, 1e-6)


TRANSPOSED = {"n_outputs": 3 * C, "shape": (3, C)}


def test_the_name_leaves_out_what_pytorch_leaves_out():
    module = Net(**SEQUENCE)
    risk = EmpiricalRisk(module, "cross_entropy", X, POSITIONS_LEFT_OUT, chunk_size=5)
    right = F.cross_entropy(module(X), POSITIONS_LEFT_OUT).detach()
    close(risk.value(risk.params()), right)


def test_examples_can_count_alike():
    module = Net(**SEQUENCE)
    risk = EmpiricalRisk(
        module,
        "cross_entropy",
        X,
        POSITIONS_LEFT_OUT,
        chunk_size=5,
        positions="example",
    )
    counted = POSITIONS_LEFT_OUT != -100
    losses = F.cross_entropy(module(X), POSITIONS_LEFT_OUT, reduction="none").detach()
    counts = counted.sum(1)
    assert set(counts.tolist()) == {0, 1, 2, 3}  # among them example 4, of no target
    means = losses.sum(1)[counts > 0] / counts[counts > 0]
    theta = risk.params()
    close(risk.value(theta), means.mean())
    close(risk.subset(torch.tensor([4])).value(theta), 0.0)
    rows = torch.cat(list(risk.per_example_gradients(theta)))
    # ℓ̃ᵢ is N/11 times the mean over the targets of an example; example 4 has none.
    scale = N / int((counts > 0).sum())
    sums = rows_of(
        module,
        lambda f, y: F.cross_entropy(f, y, reduction="none"),
        POSITIONS_LEFT_OUT,
    )
    close(rows, scale * sums / counts.clamp(min=1)[:, None])
    assert not bool(rows[4].any())


def test_a_minibatch_is_the_plain_mean_of_weighed_examples():
    module = Net(**SEQUENCE)
    risk = EmpiricalRisk(module, "cross_entropy", X, POSITIONS_LEFT_OUT, chunk_size=5)
    counts = (POSITIONS_LEFT_OUT != -100).sum(1).double()
    sums = F.cross_entropy(module(X), POSITIONS_LEFT_OUT, reduction="none").sum(1)
    batch = torch.tensor([2, 4, 9])
    right = N * sums[batch].mean() / counts.sum()  # not over the batch's own targets
    gradient = torch.autograd.grad(right, list(module.parameters()))
    value, found = risk.value_and_batch_gradient(risk.params(), batch)
    close(value, right.detach())
    close(found, torch.cat([g.flatten() for g in gradient]))


def test_classes_on_the_last_axis_are_told_how_to_move():
    message = r"needs class indices.*output_transform=.*transpose\(1, 2\)"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        EmpiricalRisk(Net(**TRANSPOSED), "cross_entropy", X, POSITIONS)
    right = EmpiricalRisk(
        Net(**TRANSPOSED),
        "cross_entropy",
        X,
        POSITIONS,
        output_transform=lambda outputs: outputs.transpose(1, 2),
    )
    module = Net(**TRANSPOSED)
    expected = F.cross_entropy(module(X).transpose(1, 2), POSITIONS)
    close(right.value(right.params()), expected.detach())


TOKENS = 5
TEXT = torch.as_tensor(RNG.integers(0, C, (N, TOKENS)))
TEXT_LABELS = TEXT.where(torch.arange(TOKENS) < 1 + torch.arange(N)[:, None] % 5, -100)


class Language(nn.Module):
    """Each token's logits from it and from those before it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(C, 3), nn.Linear(3, C)
        self.double()

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens).cumsum(1)))


def shifted_losses(outputs, labels):
    """Return the sums of an example's losses, shifted by hand."""
    logits, labels = outputs[:, :-1].transpose(1, 2), labels[:, 1:]
    return F.cross_entropy(logits, labels, reduction="none").sum(1)


def test_next_token():
    module = Language()
    counts = (TEXT_LABELS[:, 1:] != -100).sum()

    def losses(outputs, labels):
        return N * shifted_losses(outputs, labels) / counts

    risk = EmpiricalRisk(module, "next_token", TEXT, TEXT_LABELS, chunk_size=5)
    theta = risk.params()
    expected = dense(module, losses, TEXT, TEXT_LABELS, theta)
    v = numbers(len(theta))
    close(risk.value(theta), expected.value)
    close(torch.cat(list(risk.per_example_gradients(theta))), expected.gradients)
    close(risk.gradient_variances(theta), expected.covariance.diag())
    point = risk.linearize(theta)
    close(point.hvp(v), expected.hessian @ v, 1e-8)
    close(point.ggn(v), expected.gauss_newton @ v, 1e-8)
    traces = torch.stack([G.trace() for G in expected.gauss_newtons])
    close(risk.gauss_newton_traces(theta), traces, 1e-8)
    other = risk.to(dtype="float32").to(dtype="float64")
    close(other.value(theta), expected.value, 1e-5)


def test_slopes_of_drawn_tokens_have_the_hessian_as_second_moment():
    risk = EmpiricalRisk(Language(), "next_token", TEXT, TEXT_LABELS)
    theta, rng = risk.params(), torch.Generator().manual_seed(0)
    slopes = torch.stack([risk.model_slopes(theta, rng) for _ in range(N_DRAWS)])
    assert not bool(slopes[:, :, -1].any())
    outputs, weights = risk.outputs(theta), risk._data.weights

    def weighed(f):
        i = len(f)
        counted = (TEXT_LABELS[:i, 1:] != -100).sum(1).clamp(min=1)
        return (shifted_losses(f, TEXT_LABELS[:i]) / counted * weights[:i]).sum()

    right = torch.autograd.functional.hessian(weighed, outputs[:3]).flatten(3)
    n = outputs[0].numel()
    right = torch.stack([right.view(3, n, 3, n)[i, :, i] for i in range(3)])
    flat = slopes[:, :3].flatten(2)
    found = torch.einsum("sia,sib->iab", flat, flat) / N_DRAWS
    close(found, right, 0.1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (TEXT_LABELS[:, 1:], "needs labels of shape .'n', 5.*not shifted"),
        (TEXT + 1, "can have labels 0 to 3.*labels from 1 to 4"),
        (torch.full_like(TEXT, -100), "At least one target must count"),
    ],
    ids=["shifted", "out of range", "all left out"],
)
def test_next_token_refuses(labels, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        EmpiricalRisk(Language(), "next_token", TEXT, labels)


def test_next_token_needs_logits_of_each_token():
    with pytest.raises(ValueError, match=r"logits of shape \(n, T, V\)"):
        EmpiricalRisk(Net(), "next_token", X, LABELS)


def test_next_token_is_the_loss_of_a_hugging_face_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=C,
        n_positions=TOKENS,
        n_embd=4,
        n_layer=1,
        n_head=2,
        attn_implementation="eager",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    # Padded on the right, and without a label there.
    X = {"input_ids": TEXT, "attention_mask": (TEXT_LABELS != -100).long()}
    right = model(**X, labels=TEXT_LABELS).loss
    risk = EmpiricalRisk(model, "next_token", X, TEXT_LABELS, chunk_size=5)
    theta = risk.params()
    # Its own loss takes the logits in float32.
    close(risk.value(theta), right.detach(), 1e-6)
    gradient = torch.autograd.grad(right, list(model.parameters()))
    close(risk.gradient(theta), torch.cat([g.flatten() for g in gradient]), 1e-5)


class WarmingUp(nn.Module):
    """A penalty that comes in after some calls."""

    def __init__(self):
        super().__init__()
        self.n_calls = 0

    def forward(self, outputs, y):
        self.n_calls += 1
        losses = F.cross_entropy(outputs, y, reduction="none")
        return losses + (self.n_calls > 500) * outputs.square().sum(1)


class Annealed(WarmingUp):
    """A penalty that grows by a millionth of itself with each call."""

    def forward(self, outputs, y):
        self.n_calls += 1
        losses = F.cross_entropy(outputs, y, reduction="none")
        return losses + self.n_calls / 1e6 * outputs.square().sum(1)


class CallsItself:
    """The same by an object that is no module."""

    def __init__(self):
        self.inner = Annealed()
        self.n_calls = 0

    def __call__(self, outputs, y):
        self.inner.n_calls = self.n_calls = self.n_calls + 1
        return self.inner(outputs, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        WarmingUp,
        Annealed,
        CallsItself,
        lambda: Annealed().forward,
        lambda: ModuleLoss(in_module(WarmingUp())),
    ],
)
def test_a_loss_that_counts_its_calls(make, dtype):
    X, y = torch.randn(20, 4, dtype=dtype), torch.arange(20) % 3
    with pytest.raises(ValueError, match=r"function of .* alone.*counts.*n_calls"):
        EmpiricalRisk(nn.Linear(4, 3, dtype=dtype), make(), X, y)


def in_module(loss):
    class OfModule:
        n_calls = 0

        def __call__(self, module, X, y):
            self.n_calls += 1
            loss.n_calls = self.n_calls
            return loss(module(X), y)

    return OfModule()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_a_loss_may_count_what_it_does_not_use(dtype):
    class Counting:
        def __init__(self):
            self.n_calls = torch.tensor(0, dtype=dtype)

        def __call__(self, outputs, y):
            self.n_calls += 1
            return F.cross_entropy(outputs, y, reduction="none")

    loss, X, y = Counting(), torch.randn(9, 4), torch.arange(9) % 3
    EmpiricalRisk(nn.Linear(4, 3), loss, X, y)
    assert 0 < loss.n_calls < 200
