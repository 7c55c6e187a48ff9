"""Losses beside PyTorch's own modules, on all data and example by example."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk, resolve_loss
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


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_slopes_of_drawn_targets_have_the_hessian_as_second_moment(name):
    loss, y, net, _ = RIGHT[name]
    outputs = Net(**net)(X)[:2].detach()
    example_loss = resolve_loss(loss)
    targets = example_loss.prepare_targets(y, outputs)[:2]
    rng = torch.Generator().manual_seed(0)
    draws = [example_loss.model_slope(outputs, targets, rng) for _ in range(4000)]
    slopes = torch.stack(draws).flatten(2)
    found = torch.einsum("knp,knq->npq", slopes, slopes) / len(slopes)
    for i in range(2):
        right = torch.autograd.functional.hessian(
            lambda f, i=i: example_loss.per_example(f[None], targets[i : i + 1])[0],
            outputs[i],
        ).view(found[i].shape)
        error = found[i] - right
        assert error.norm() < 0.08 * right.norm() + 1e-12
