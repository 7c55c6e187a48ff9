"""Losses by slices of positions: those of all positions at once, and of PyTorch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk
from flatmin.risk.losses import positions
from flatmin.risk.losses.next_token import NextToken
from flatmin.risk.losses.resolve_loss import resolve_loss

WEIGHT = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0])


def shifted(outputs, y):
    """The loss of Hugging Face's causal models, one an example."""
    losses = F.cross_entropy(
        outputs[:, :-1].mT.contiguous(), y[:, 1:], reduction="none"
    )
    return losses.sum(1) / (y[:, 1:] != -100).sum(1).clamp(min=1)


def of(module):
    """The loss of a module of PyTorch, one an example."""

    def losses(outputs, y):
        parts = []
        for f, t in zip(outputs, y, strict=True):
            counts = not t.is_floating_point()
            if counts and bool((t == module.ignore_index).all()):
                parts.append(f.sum() * 0)
            else:
                parts.append(module(f[None], t[None]))
        return torch.stack(parts)

    return losses


def indices(*shape, left_out=-100):
    y = torch.randint(0, 5, shape)
    y[0, ..., -2:] = left_out
    return y


def positive_weights(y):
    """Of the class of weight 0 there is none: PyTorch would divide by zero."""
    return y.where(y != 3, 2)


def cases():
    """Name -> the loss, its value by PyTorch alone, outputs and targets."""
    soft = torch.rand(4, 5, 6, dtype=torch.float64)
    modules = {
        "indices": (nn.CrossEntropyLoss(), (4, 5, 6), indices(4, 6)),
        "indices, no positions": (
            nn.CrossEntropyLoss(),
            (40, 5),
            torch.randint(0, 5, (40,)),
        ),
        "images": (nn.CrossEntropyLoss(), (3, 5, 4, 6), indices(3, 4, 6)),
        "ignore_index": (
            nn.CrossEntropyLoss(ignore_index=1),
            (4, 5, 6),
            indices(4, 6, left_out=1),
        ),
        "class weights": (
            nn.CrossEntropyLoss(WEIGHT.double()),
            (4, 5, 6),
            positive_weights(indices(4, 6)),
        ),
        "label smoothing": (
            nn.CrossEntropyLoss(label_smoothing=0.1),
            (4, 5, 6),
            indices(4, 6),
        ),
        "all three": (
            nn.CrossEntropyLoss(WEIGHT.double(), ignore_index=-7, label_smoothing=0.2),
            (4, 5, 6),
            positive_weights(indices(4, 6, left_out=-7)),
        ),
        "label smoothing, classes last": (
            nn.CrossEntropyLoss(label_smoothing=0.1),
            None,
            indices(4, 6),
        ),
        "probabilities": (
            nn.CrossEntropyLoss(),
            (4, 5, 6),
            soft / soft.sum(1, keepdim=True),
        ),
        "smoothed probabilities": (
            nn.CrossEntropyLoss(WEIGHT.double(), label_smoothing=0.1),
            (4, 5, 6),
            soft,
        ),
    }
    found = {}
    for name, (module, shape, y) in modules.items():
        value = of(module)
        found[name] = resolve_loss(module), value, shape, y
    found["next token"] = NextToken(), shifted, (4, 6, 5), indices(4, 6)
    return found


def outputs_of(shape):
    if shape is None:
        return 3 * torch.randn(4, 6, 5, dtype=torch.float64).mT
    return 3 * torch.randn(shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=[7, 12, 31, 1000], ids=lambda size: f"slices of {size}")
def sliced(request, monkeypatch):
    monkeypatch.setattr(positions, "_LARGE", 0)
    monkeypatch.setattr(positions, "_SLICE", request.param)


@pytest.mark.parametrize("name", cases())
def test_losses_slopes_and_second_derivatives(name, sliced):
    loss, value, shape, y = cases()[name]
    f = outputs_of(shape)
    y = loss.prepare_targets(y, f[:1])
    u, c = torch.randn_like(f), torch.randn(len(f)).double()
    found, right = [], []
    for numbers, losses in ((found, loss.per_example), (right, value)):
        leaf, weights = f.clone().requires_grad_(), c.clone().requires_grad_()
        each = losses(leaf if losses is not value else leaf.contiguous(), y)
        (slopes,) = torch.autograd.grad(each, leaf, weights, create_graph=True)
        parts = torch.autograd.grad(
            slopes, (leaf, weights), u, create_graph=True, materialize_grads=True
        )
        numbers += [each, slopes, *parts]
        if shape is None or name == "next token":
            continue  # PyTorch has no third derivative with the classes last
        parts = [part for part in parts if part.requires_grad]
        ones = [torch.ones(part.shape).to(part) for part in parts]
        numbers += torch.autograd.grad(parts, leaf, ones)
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", cases())
def test_products_with_the_output_hessian(name, sliced):
    loss, value, shape, y = cases()[name]
    f = outputs_of(shape)
    y = loss.prepare_targets(y, f[:1])
    blocks = [
        torch.autograd.functional.hessian(
            lambda o, i=i: value(o[None], y[i : i + 1])[0], f[i]
        ).reshape(f[i].numel(), -1)
        for i in range(len(f))
    ]
    u = torch.randn_like(f)
    right = torch.stack([H @ v.flatten() for H, v in zip(blocks, u, strict=True)])
    torch.testing.assert_close(loss.hessian_product(f, y, u), right.view_as(u))
    unit = torch.eye(f[0].numel(), dtype=f.dtype).view(-1, *f.shape[1:])
    for product in (loss.root_product, loss.sign_product):
        S = torch.stack([product(f, y, z.expand_as(f)).flatten(1) for z in unit], 2)
        torch.testing.assert_close(S @ S.mT, torch.stack(blocks), atol=1e-10, rtol=1e-7)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, X):
        h = self.table(X).tanh()
        return self.out(h.cumsum(1).tanh())


@pytest.mark.parametrize("places", ["all", "example"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_risk_by_slices(places, weighted, monkeypatch):
    """Every word is that of all positions at once."""
    X, y = torch.randint(0, 5, (9, 6)), indices(9, 6)
    weight = torch.rand(9).double() if weighted else None
    module, found = Tokens().double(), []
    for size in (None, 8):
        if size is not None:
            monkeypatch.setattr(positions, "_LARGE", 0)
            monkeypatch.setattr(positions, "_SLICE", size)
        risk = EmpiricalRisk(
            module,
            "next_token",
            X,
            y,
            positions=places,
            sample_weight=weight,
            chunk_size=4,
        )
        theta = risk.params()
        v, z = torch.randn(2, len(theta), generator=torch.Generator().manual_seed(0))
        point = risk.linearize(theta, n_products=1)
        draw = torch.Generator().manual_seed(1)
        found.append(
            [
                *risk.value_and_gradient(theta),
                risk.squared_norms(theta),
                risk.gradient_variances(theta),
                point.hvp(v.double()),
                point.ggn(z.double()),
                risk.linearize(theta).hvp(v.double()),
                *risk.value_and_gauss_newton_draw(theta, torch.tensor(1.0), draw),
            ]
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_slopes_drawn_from_the_model(monkeypatch):
    """Their mean outer product is the Hessian in the outputs."""
    loss, _, shape, y = cases()["next token"]
    f = outputs_of(shape) / 3
    y = loss.prepare_targets(y, f[:1])
    monkeypatch.setattr(positions, "_LARGE", 0)
    monkeypatch.setattr(positions, "_SLICE", 10)
    rng, n = torch.Generator().manual_seed(0), 1500
    u = torch.randn_like(f)
    along = [(loss.model_slope(f, y, rng) * u).sum((1, 2)) for _ in range(n)]
    squares = torch.stack(along).square()
    right = (u * loss.hessian_product(f, y, u)).sum((1, 2))
    error = squares.std(0) / n**0.5
    assert ((squares.mean(0) - right).abs() < 4 * error + 1e-12).all()


def test_the_graph_holds_no_copy(monkeypatch):
    """Of the outputs' size are the outputs and their slopes alone."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.untyped_storage().data_ptr())
        return tensor

    loss, f = NextToken(), torch.randn(4, 6, 50, requires_grad=True)
    y = loss.prepare_targets(torch.randint(0, 50, (4, 6)), f[:1])
    monkeypatch.setattr(positions, "_LARGE", 0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss.per_example(f, y)
    large = {place for place in sizes if place == f.untyped_storage().data_ptr()}
    assert len(large) == 1
    assert len(set(sizes)) <= 3  # and targets, and what counts
