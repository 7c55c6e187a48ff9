"""Sure predictions: everything keeps its digits, whatever 1 - p rounds to.

The right values are sums of the small probabilities, in extended precision.
"""

import numpy as np
import pytest
import torch
from torch import nn

from flatmin.risk import EmpiricalRisk, resolve_loss
from flatmin.risk.products import graphs

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
GAPS = [0, 5, 15, 25, 60, 200]
# Of the logits of three examples, and their X.
SCALES = {1: np.array([1.0, 0.5, -1.0]), 4: np.array([1.0, 0.5, 0.75])}
WEIGHTS = np.array([1.0, 2.0, 3.0])


def logits(gap, n_outputs):
    """One sure class, and others that differ: exact numbers in float32."""
    if n_outputs == 1:
        return np.array([float(gap)])
    return np.array([0.0, -0.5, float(gap), 0.25])


def probabilities(f):
    """Return p and 1 - p of each class, to all digits."""
    f = f.astype(np.longdouble)
    if len(f) == 1:
        f = np.array([f[0], np.longdouble(0)])
    odds = np.exp(f - f.max())
    others = np.array([np.delete(odds, c).sum() for c in range(len(f))])
    return odds / odds.sum(), others / odds.sum()


class Right:
    """L, g₀, ‖gᵢ‖² and G = H of logits that are linear in θ."""

    def __init__(self, gap, n_outputs, labels, weights):
        w = np.ones(3) if weights is None else 3 * weights / weights.sum()
        self.losses, self.slopes, self.hessians = [], [], []
        for scale, y, weight in zip(SCALES[n_outputs], labels, w, strict=True):
            f = scale * logits(gap, n_outputs)
            p, rest = probabilities(f)
            if n_outputs == 1:
                own = 1 - y  # of the classes (1, 0)
                slope = np.array([rest[0] * -1 if y else p[0]])
                hessian = np.array([[p[0] * rest[0]]])
            else:
                own = y
                slope = np.where(np.arange(len(p)) == y, -rest, p)
                hessian = np.where(
                    np.eye(len(p)) > 0, p * rest, -p[:, None] * p[None, :]
                )
            likely = p[own] > 0.5
            self.losses.append(
                weight * (-np.log1p(-rest[own]) if likely else -np.log(p[own]))
            )
            self.slopes.append(weight * scale * slope)
            self.hessians.append(weight * scale**2 * hessian)
        self.value = np.mean(self.losses)
        self.gradient = np.mean(self.slopes, 0)
        self.squares = np.array([(s**2).sum() for s in self.slopes])
        self.traces = np.array([np.trace(h) for h in self.hessians])
        self.hessian = np.mean(self.hessians, 0)


def problem(gap, n_outputs, labels, weights, dtype):
    net = nn.Linear(1, n_outputs, bias=False).to(dtype)
    net.weight.data.copy_(torch.as_tensor(logits(gap, n_outputs))[:, None])
    X = torch.as_tensor(SCALES[n_outputs], dtype=dtype)[:, None]
    y = torch.as_tensor(labels)
    loss = "binary_cross_entropy" if n_outputs == 1 else "cross_entropy"
    if n_outputs == 1:
        y = y.to(dtype)[:, None]
    return EmpiricalRisk(net, loss, X, y, sample_weight=weights)


def close(found, right, dtype):
    """Compare to the digits of the dtype; what it cannot hold is zero."""
    found = np.asarray(found.detach().double() if hasattr(found, "detach") else found)
    off = np.linalg.norm((found - right).astype(float).ravel())
    smallest = 100 * torch.finfo(dtype).tiny
    assert off <= TOLERANCES[dtype] * float(np.linalg.norm(right)) + smallest


LABELS = {(1, "right"): [1, 1, 0], (1, "wrong"): [0, 0, 1]}
LABELS |= {(4, "right"): [2, 2, 2], (4, "wrong"): [0, 1, 3]}


def check_products(risk, right, dtype):
    n_outputs = risk.n_params
    point = risk.linearize(risk.params())
    unit = torch.eye(n_outputs, dtype=dtype)
    G = torch.stack([point.ggn(column) for column in unit])
    H = torch.stack([point.hvp(column) for column in unit])
    for matrix in (G, H):
        close(matrix, right.hessian, dtype)
        close(matrix.diagonal(), np.diag(right.hessian), dtype)
        close(matrix.trace(), np.trace(right.hessian), dtype)
    v = torch.linspace(-1, 2, n_outputs, dtype=dtype)
    close(point.ggn(v), right.hessian @ v.double().numpy(), dtype)
    return point.paths


@pytest.mark.parametrize(
    ("dtype", "weights"), [(torch.float32, WEIGHTS), (torch.float64, None)]
)
@pytest.mark.parametrize(("n_outputs", "are"), LABELS)
@pytest.mark.parametrize("gap", GAPS)
def test_sure_predictions(gap, n_outputs, are, dtype, weights):
    labels = LABELS[n_outputs, are]
    right = Right(gap, n_outputs, labels, weights)
    risk = problem(gap, n_outputs, labels, weights, dtype)
    theta = risk.params()
    close(risk.value(theta), right.value, dtype)
    value, gradient = risk.value_and_gradient(theta)
    close(value, right.value, dtype)
    close(gradient, right.gradient, dtype)
    close(risk.squared_norms(theta), right.squares, dtype)
    close(risk.gauss_newton_traces(theta), right.traces, dtype)
    check_products(risk, right, dtype)


@pytest.mark.parametrize(("n_outputs", "are"), LABELS)
def test_in_a_trace(n_outputs, are, monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)
    labels = LABELS[n_outputs, are]
    right = Right(25, n_outputs, labels, None)
    risk = problem(25, n_outputs, labels, None, torch.float32)
    paths = check_products(risk, right, torch.float32)
    assert paths["hvp"] == paths["ggn"] == "graph"


def of_dtype(gap, n_outputs, dtype):
    return torch.as_tensor(logits(gap, n_outputs)).to(dtype)[None]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n_outputs", [1, 4])
@pytest.mark.parametrize("gap", GAPS)
def test_noise_of_sure_predictions(gap, n_outputs, dtype, monkeypatch):
    # What gld_ggn draws from, and E[rrᵀ] of the slopes at labels of the model.
    loss = resolve_loss("binary_cross_entropy" if n_outputs == 1 else "cross_entropy")
    outputs = of_dtype(gap, n_outputs, dtype)
    y = outputs if n_outputs == 1 else torch.tensor([0])
    p, rest = probabilities(logits(gap, n_outputs))
    right = p[:1] * rest[:1]
    if n_outputs > 1:
        right = np.where(np.eye(4) > 0, p * rest, -p[:, None] * p)
    for product in (loss.root_product, loss.sign_product):
        S = torch.cat([product(outputs, y, e[None]) for e in torch.eye(n_outputs)])
        # Not a product in float32, where squares of 1e-27 are zero.
        S = S.double()
        close(S.T @ S, right, dtype)
    slopes = []
    for drawn in range(len(p)):  # of the one output, whether it is the rarer class
        forced = torch.tensor([[drawn]])
        monkeypatch.setattr(torch, "multinomial", lambda *_, f=forced, **__: f)
        monkeypatch.setattr(torch, "bernoulli", lambda *_, f=forced, **__: f)
        slopes.append(loss.model_slope(outputs, y, torch.Generator())[0].double())
    total = sum(
        float(chance) * torch.outer(r, r) for chance, r in zip(p, slopes, strict=True)
    )
    close(total, right, dtype)


WEIGHT = torch.tensor([1.0, 2.0, 4.0, 0.5], dtype=torch.float64)
FORMS = {
    "probabilities": (nn.CrossEntropyLoss(), [[0.0, 0.0, 1.0, 0.0]], [0, 0, 1, 0]),
    "class weights": (nn.CrossEntropyLoss(WEIGHT), [2], [0, 0, 4, 0]),
    "both": (nn.CrossEntropyLoss(WEIGHT), [[0.0, 0.0, 1.0, 0.0]], [0, 0, 4, 0]),
    "nobody's index": (nn.CrossEntropyLoss(ignore_index=3), [2], [0, 0, 1, 0]),
    "smoothing": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        [2],
        [0.025, 0.025, 0.925, 0.025],
    ),
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gap", GAPS)
def test_forms_of_cross_entropy(gap, form, dtype):
    module, y, q = FORMS[form]
    loss = resolve_loss(module).to(dtype=dtype)
    outputs = of_dtype(gap, 4, dtype).requires_grad_()
    targets = loss.prepare_targets(torch.as_tensor(y), outputs)
    p, rest = probabilities(logits(gap, 4))
    q = np.array(q, np.longdouble)
    log_p = np.where(p > 0.5, np.log1p(-rest.clip(max=0.9)), np.log(p))
    slope = np.where(q == q.sum(), -q * rest, q.sum() * p - q)
    right = q.sum() * np.where(np.eye(4) > 0, p * rest, -p[:, None] * p)
    counts = loss.target_weights(targets)  # which the mean divides by
    counts = 1 if counts is None else counts
    losses = loss.per_example(outputs, targets) * counts
    close(losses, [-(q * log_p).sum()], dtype)
    (found,) = torch.autograd.grad(losses.sum(), outputs, create_graph=True)
    close(found[0], slope, dtype)
    rows = [torch.autograd.grad(s, outputs, retain_graph=True)[0] for s in found[0]]
    close(torch.cat(rows), right, dtype)
    rows = [loss.hessian_product(outputs, targets, e[None]) for e in torch.eye(4)]
    close(torch.cat(rows).mul(counts), right, dtype)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_an_infinite_logit_is_no_small_loss(loss):
    outputs = torch.tensor([[torch.inf, 0.0]])
    y = torch.tensor([0]) if loss == "cross_entropy" else torch.tensor([[1.0, 0.0]])
    assert not resolve_loss(loss).per_example(outputs, y).isfinite().any()


@pytest.mark.parametrize("label", [0, 1])
def test_an_infinite_logit_has_no_slope(label):
    """As PyTorch's own loss has none: a 0 there would pass for a minimum."""
    outputs = torch.tensor([[torch.inf, 0.0, 1.0]], requires_grad=True)
    loss = resolve_loss("cross_entropy").per_example(outputs, torch.tensor([label]))
    (slope,) = torch.autograd.grad(loss, outputs)
    assert loss.isnan()
    assert slope[0, 0].isnan()


def test_masked_logits():
    outputs = torch.tensor([[-torch.inf, 1.0, 0.0]], requires_grad=True)
    loss = resolve_loss("cross_entropy").per_example(outputs, torch.tensor([1]))
    (slope,) = torch.autograd.grad(loss, outputs)
    p = np.exp(-1) / (1 + np.exp(-1))
    close(loss, [-np.log1p(-p)], torch.float32)
    close(slope, [[0, -p, p]], torch.float32)


def written_out(outputs, y):
    return -outputs.log_softmax(1).gather(1, y[:, None])[:, 0]


def with_weights_of_one_dtype(outputs, y):
    losses = nn.functional.cross_entropy(
        outputs, y, weight=torch.ones(4), reduction="none"
    )
    return losses * 1


@pytest.mark.parametrize("gap", [5, 15, 25, 40])
def test_a_loss_of_ones_own(gap):
    # In float32 it is off by 2e-3 at a gap of 25; S by all of itself from there on.
    right = Right(gap, 4, [2, 2, 2], None)
    named = problem(gap, 4, [2, 2, 2], None, torch.float32)
    X, y = named._data.arguments()
    own = EmpiricalRisk(named._model.module, written_out, X, y)
    theta = own.params()
    close(own.value(theta), right.value, torch.float32)
    close(own.gradient(theta), right.gradient, torch.float32)
    close(own.squared_norms(theta), right.squares, torch.float32)
    close(own.gauss_newton_traces(theta), right.traces, torch.float32)
    check_products(own, right, torch.float32)


def test_a_loss_of_one_dtype_stays_in_it():
    named = problem(5, 4, [2, 2, 2], None, torch.float32)
    X, y = named._data.arguments()
    own = EmpiricalRisk(named._model.module, with_weights_of_one_dtype, X, y)
    close(own.value(own.params()), float(named.value(named.params())), torch.float32)
    assert own._loss._twin is None


def test_small_blocks_do_not_hide_the_rest():
    # Of one dtype, at L = 4e-6: entries beside the diagonal are below a few roundings.
    named = problem(25, 4, [2, 2, 2], None, torch.float32)
    X, y = named._data.arguments()
    own = EmpiricalRisk(named._model.module, with_weights_of_one_dtype, X, y)
    found = own.gauss_newton_traces(own.params()).mean()
    right = Right(25, 4, [2, 2, 2], None).traces.mean()
    assert abs(float(found) / right - 1) < 0.01
