"""Losses beside PyTorch's own modules, on all data and example by example."""

import numpy as np
import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk
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


def example_losses(loss, weights):
    """Return what one example's ℓ is by PyTorch's reduction="none"."""
    none = nn_with(loss, "none")

    def losses(outputs, y):
        values = none(outputs, y).reshape(len(y), -1)
        if loss.reduction == "batchmean":
            return values.sum(1)
        return values.mean(1) if weights is None else values.sum(1)

    return losses


def nn_with(loss, reduction):
    import copy

    loss = copy.deepcopy(loss)
    loss.reduction = reduction
    return loss


@pytest.mark.parametrize("reduction", ["default", "sum", "none"])
@pytest.mark.parametrize("name", RIGHT)
def test_on_the_whole_of_the_data_it_is_what_pytorch_gives(name, reduction):
    loss, y, net, _ = RIGHT[name]
    if reduction != "default" and loss.reduction == "batchmean":
        pytest.skip("its sum and its mean are other losses")
    module = Net(**net)
    with pytest.warns() if name == "kl" else contextless():
        right = loss(module(X), y)
    asked = loss if reduction == "default" else nn_with(loss, reduction)
    risk = EmpiricalRisk(module, asked, X, y, chunk_size=5)
    theta = risk.params()
    close(risk.value(theta), right.detach())
    gradient = torch.autograd.grad(right, list(module.parameters()))
    close(risk.gradient(theta), torch.cat([g.flatten() for g in gradient]))


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", RIGHT)
def test_everything_else_follows(name, sampled):
    loss, y, net, counts = RIGHT[name]
    module = Net(**net)
    sample_weight = numbers(N, low=0.5, high=3.0) if sampled else torch.ones(N)
    if counts is None:
        weights, losses = sample_weight, example_losses(loss, None)
    else:
        # ℓ̃ᵢ = N s_i (sum of the example's numerators) / Σ s w.
        w = counts.double().reshape(N, -1).sum(1)
        weights = sample_weight
        factor = sample_weight.sum() / (sample_weight * w).sum()
        numerators = example_losses(loss, counts)
        losses = lambda f, y: factor * numerators(f, y)  # noqa: E731
    expected = dense(module, losses, X, y, flat_parameters(module), weights=weights)
    options = {"sample_weight": sample_weight} if sampled else {}
    risk = EmpiricalRisk(module, loss, X, y, chunk_size=5, **options)
    theta = risk.params()
    v = numbers(len(theta))
    close(risk.value(theta), expected.value)
    close(torch.cat(list(risk.per_example_gradients(theta))), expected.gradients)
    close(risk.gradient_variances(theta), expected.covariance.diag())
    point = risk.linearize(theta)
    close(point.hvp(v), expected.hessian @ v, 1e-8)
    close(point.ggn(v), expected.gauss_newton @ v, 1e-8)
    traces = torch.stack([G.trace() for G in expected.gauss_newtons])
    close(risk.gauss_newton_traces(theta), traces, 1e-8)
    some = risk.subset(torch.tensor([3, 7, 7]))
    close(some.value(theta), expected.losses[[3, 7, 7]].mean())
    moved = some.to(dtype="float32").to(dtype="float64")
    close(moved.value(theta), some.value(theta), 1e-5)


def contextless():
    import contextlib

    return contextlib.nullcontext()
