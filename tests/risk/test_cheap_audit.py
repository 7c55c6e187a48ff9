"""What the trials alone catch: each fault with its own mend switched off.

Every fault was once a wrong number without a word. With the mend in place it is right
or refused by name (tested elsewhere); here the mend is taken out again, and what is
left is what compares a few examples before the first number.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatmin.risk import EmpiricalRisk
from flatmin.risk.autodiff import spelled_out
from flatmin.risk.example_sums import parameter_watch
from flatmin.risk.network import model
from flatmin.risk.products import graphs, two_stage

from . import test_independence as independence
from . import test_second_derivatives as second
from .test_surroundings import Encoder, Two

N = 12


def without_spelling(monkeypatch):
    monkeypatch.setattr(spelled_out, "SPELLED_OUT", {})
    monkeypatch.setattr("flatmin.risk.autodiff.kernels.SPELLED_OUT", {})


def without_one_attention(monkeypatch):
    monkeypatch.setattr(model, "one_attention", contextlib.nullcontext)


def without_pairs(monkeypatch):
    monkeypatch.setattr(model, "_BatchNorm", type(None))


def without_isolation(monkeypatch):
    monkeypatch.setattr(two_stage, "isolated", lambda function: function())


def without_regrouping(monkeypatch):
    monkeypatch.setattr(parameter_watch, "regroups", lambda *_: False)


def with_graphs(monkeypatch):
    monkeypatch.setattr(graphs, "_WORTH_A_GRAPH", 0)


def nothing(monkeypatch):
    """The trials are the mend."""


class Alias(nn.Module):
    """Parameters under a second name."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.again = [self.first.weight, self.first.bias]

    def forward(self, x):
        return self.last(torch.tanh(F.linear(x, *self.again)))


class Stem(nn.Module):
    """BatchNorm3d whose gradient comes back in another layout."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)
        self.layer, self.last = nn.LayerNorm(4), nn.Linear(4, 3)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        h = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return self.last(self.layer(h).tanh().mean(1))


def flat():
    return torch.randn(N, 4)


def padded():
    X = torch.randint(1, 9, (N, 6))
    X[:5, 4:] = 0
    return X


def quantile(h):
    return h * h.quantile(0.3, dim=1, keepdim=True)


def seen(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, X = independence.seen()[name]
    return nothing, lambda: module, lambda: X, None


# Fault -> its mend taken out, module, X, loss.
FAULTS = {
    "second name": (nothing, Alias, flat, None),
    "other function without gradients": (nothing, Two, flat, None),
    "padded transformer": (
        without_one_attention,
        lambda: Encoder("encoder"),
        padded,
        None,
    ),
    "backward that is not differentiated": (
        nothing,
        lambda: second.Net(second.ThroughNumPy.apply),
        flat,
        None,
    ),
    "once differentiable": (
        nothing,
        lambda: second.Net(second.OnceDifferentiable.apply),
        flat,
        None,
    ),
    "wrong second derivative": (
        nothing,
        lambda: second.Net(second.WrongSecond.apply),
        flat,
        None,
    ),
    "hardsigmoid": (without_spelling, lambda: second.Net(F.hardsigmoid), flat, None),
    "bag of words": (
        without_spelling,
        lambda: second.Bags(),
        lambda: torch.randint(0, 9, (N, 5)),
        None,
    ),
    "cdist": (
        without_spelling,
        lambda: second.Net(
            lambda h: torch.cdist(h, second.PROTOTYPES[:5].to(h)), middle=5
        ),
        flat,
        None,
    ),
    "sinc at 0": (
        without_spelling,
        lambda: second.Net(lambda h: torch.sinc(h * (h > 0))),
        flat,
        None,
    ),
    "lp_pool of zeros": (
        without_spelling,
        lambda: second.Net(
            lambda h: F.lp_pool1d(h.relu()[:, None], 2.0, 2)[:, 0], middle=3
        ),
        flat,
        None,
    ),
    "logcumsumexp": (
        without_spelling,
        lambda: second.Net(lambda h: h.logcumsumexp(1)),
        flat,
        None,
    ),
    "tiny factor": (
        without_spelling,
        lambda: second.Net(second.SPELLED["prod with a tiny factor"][0], middle=1),
        flat,
        None,
    ),
    "margin loss": (
        without_spelling,
        lambda: second.Net(torch.tanh),
        flat,
        lambda f, y: F.multi_margin_loss(f, y, reduction="none"),
    ),
    "BatchNorm of one example": (
        without_pairs,
        Stem,
        lambda: torch.randn(7, 2, 3, 3, 3),
        None,
    ),
    "trace that fails": (without_isolation, lambda: second.Net(quantile), flat, None),
    "regrouped": (
        without_regrouping,
        lambda: independence.net(independence.regrouped),
        flat,
        None,
    ),
    **{f"sees others: {name}": seen(name) for name in independence.seen()},
    "contrastive loss": (
        nothing,
        lambda: second.Net(torch.tanh),
        flat,
        independence.info_nce,
    ),
}

# Of many parameters, whose H is taken column by column; and what others of their kind
# tell sooner.
SLOW = {
    "padded transformer",
    "sees others: LSTM, batch second",
    "sees others: transformer, batch second",
}


@pytest.mark.parametrize("graphs", [False, True], ids=["reference", "graph"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FAULTS],
)
def test_a_fault_without_its_mend(name, graphs, monkeypatch):
    mend, make, data, loss = FAULTS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().double().eval()
        X = data()
    X = X.double() if X.is_floating_point() else X
    mend(monkeypatch)
    if graphs:
        with_graphs(monkeypatch)
    # A trace can leave its thread without autograd.
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(ask, module, loss or second.cross_entropy, X).result()
    # Where the thread has lost autograd it is PyTorch that raises: no number either.
    raises = name == "trace that fails" and graphs
    assert outcome in ("right", "refused") + ("raised",) * raises


QUANTITIES = {
    "value": (lambda r, t, v: r.value(t), lambda rows, H, v: None),
    "gradient": (lambda r, t, v: r.gradient(t), lambda rows, H, v: rows.mean(0)),
    "H v": (lambda r, t, v: r.linearize(t).hvp(v), lambda rows, H, v: H @ v),
    "gᵢᵀv": (
        lambda r, t, v: r.linearize(t).directional_derivatives(v),
        lambda rows, H, v: rows @ v,
    ),
    "rows": (
        lambda r, t, v: torch.cat([*r.per_example_gradients(t)]),
        lambda rows, H, v: rows,
    ),
    "norms": (
        lambda r, t, v: r.squared_norms(t),
        lambda rows, H, v: rows.square().sum(1),
    ),
}


def ask(module, losses, X):
    """Return what becomes of a fault: right, refused, or what is wrong."""
    y = torch.arange(len(X)) % 3
    loss = "cross_entropy" if losses is second.cross_entropy else losses
    right = losses(module(X), y).mean().detach()
    rows, _, H = second.reference(module, X, y, losses)
    v, outcomes = torch.linspace(-1, 1, rows.shape[1], dtype=torch.float64), set()
    for size in (None, 3, 1):
        for quantity, (compute, expected) in QUANTITIES.items():
            try:
                risk = EmpiricalRisk(module, loss, X, y, chunk_size=size)
                found = compute(risk, risk.params(), v)
            except (ValueError, ArithmeticError):
                outcomes.add("refused")
                continue
            except RuntimeError:
                return "raised"
            wanted = right if quantity == "value" else expected(rows, H, v)
            if not (found - wanted).norm() <= 1e-6 * wanted.norm():
                return f"{quantity} in chunks of {size} is wrong"
            outcomes.add("right")
    return "right" if outcomes == {"right"} else "refused"
