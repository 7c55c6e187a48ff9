"""Losses that call the module themselves, beside dense float64 autograd."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from flatmin.curvature import HessianOperator
from flatmin.risk import EmpiricalRisk, ModuleLoss

N, L2 = 9, 0.3


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def close(found, right, rtol=1e-9):
    found, right = torch.as_tensor(found).double(), torch.as_tensor(right).double()
    torch.testing.assert_close(found, right, rtol=rtol, atol=rtol)


class Net(nn.Module):
    """With an attribute, a method and a buffer that a loss may ask for."""

    def __init__(self, n_in=2, n_out=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(n_in, 4), nn.Linear(4, n_out)
        self.diffusion = 0.3
        self.register_buffer("scale", torch.tensor(2.0))
        self.double()

    def forward(self, x):
        return self.last(self.features(x))

    def features(self, x):
        return torch.tanh(self.first(x))


def heat(module, X, y):
    """(u_t - d u_xx)² of a heat equation, and a part of its initial values."""
    X = X.requires_grad_()
    u = module(X).squeeze(1)
    (slopes,) = torch.autograd.grad(u.sum(), X, create_graph=True)
    (curved,) = torch.autograd.grad(slopes[:, 0].sum(), X, create_graph=True)
    residual = slopes[:, 1] - module.diffusion * curved[:, 0]
    return residual.square() + (u - y).square()


def heat_by_func(module, X, y):
    """The same without ``requires_grad_``."""

    def u(x):
        return module(x[None])[0, 0]

    slopes = torch.func.vmap(torch.func.grad(u))(X)
    curved = torch.func.vmap(torch.func.hessian(u))(X)[:, 0, 0]
    residual = slopes[:, 1] - module.diffusion * curved
    return residual.square() + (module(X).squeeze(1) - y).square()


def reconstruction(module, X, y):
    """Of an autoencoder whose decoder is the transpose of its encoder."""
    assert y is None
    decoded = F.linear(module.features(X), module.first.weight.T)
    return (module.scale * (decoded - X).square()).mean(1)


def masked(module, X, y):
    """Squared error where a mask is, weighted by classes; X is a mapping."""
    off = (module(X["x"]) - X["more"][0]).square() * X["mask"]
    return off.sum(1) * (1 + y)


POINTS = normal(N, 2, seed=1)
MAPPING = {
    "x": POINTS,
    "mask": torch.arange(2 * N).reshape(N, 2) % 3 > 0,
    "more": (normal(N, 2, seed=2),),
}
# f, X, y, and the outputs of the network.
CASES = {
    "physics": (heat, POINTS, normal(N, seed=3), 1),
    "physics by torch.func": (heat_by_func, POINTS, normal(N, seed=3), 1),
    "autoencoder": (reconstruction, POINTS, None, 1),
    "masked": (masked, MAPPING, torch.arange(N) % 3, 2),
}
WEIGHTS = torch.linspace(0, 2, N, dtype=torch.float64)


def rows_of(X, rows):
    if isinstance(X, dict):
        return {name: rows_of(part, rows) for name, part in X.items()}
    if isinstance(X, tuple):
        return tuple(rows_of(part, rows) for part in X)
    return None if X is None else X[rows]


class Swapped:
    """A module as f sees it, at other parameters; without flatmin."""

    def __init__(self, net, values):
        self.net, self.values = net, values
        self.diffusion, self.scale = net.diffusion, net.scale

    def __call__(self, x):
        return functional_call(self.net, self.values, (x,))

    def features(self, x):
        return torch.tanh(F.linear(x, self.first.weight, self.first.bias))

    @property
    def first(self):
        return SimpleNamespace(
            weight=self.values["first.weight"], bias=self.values["first.bias"]
        )


def losses_at(name, theta, rows=slice(None)):
    """Return ℓᵢ as a function that autograd differentiates in θ."""
    f, X, y, n_out = CASES[name]
    net = Net(n_out=n_out)
    named = list(net.named_parameters())
    parts = theta.split([p.numel() for _, p in named])
    values = {n: v.view(p.shape) for (n, p), v in zip(named, parts, strict=True)}
    plain = Swapped(net, values)
    X = rows_of(X, rows)
    X = X.clone() if isinstance(X, torch.Tensor) else X
    return f(plain, X, rows_of(y, rows))


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def risk_of(name, **options):
    f, X, y, n_out = CASES[name]
    return EmpiricalRisk(Net(n_out=n_out), ModuleLoss(f), X, y, **options)


@pytest.mark.filterwarnings("ignore:The loss does not depend")
def test_everything_but_g(name):
    options = {"chunk_size": 4, "sample_weight": WEIGHTS, "l2": L2}
    risk = risk_of(name, **options)
    theta = risk.params()
    scales = N * WEIGHTS / WEIGHTS.sum()
    functional = torch.autograd.functional
    rows = functional.jacobian(lambda t: scales * losses_at(name, t), theta)
    H = functional.hessian(lambda t: (scales * losses_at(name, t)).mean(), theta)
    losses = losses_at(name, theta).detach()
    D = len(theta)
    identity = torch.eye(D, dtype=theta.dtype)
    value = (scales * losses).mean() + L2 / 2 * theta @ theta
    close(risk.value(theta), value)
    close(risk.outputs(theta), losses)
    for found in (
        risk.value_and_gradient(theta),
        risk.value_gradient_and_variances(theta),
    ):
        close(found[0], value)
        close(found[1], rows.mean(0) + L2 * theta)
    close(torch.cat(list(risk.per_example_gradients(theta))), rows)
    close(risk.squared_norms(theta), rows.square().sum(1))
    close(risk.gradient_variances(theta), rows.var(0, correction=0))
    v, w = normal(D, seed=4), normal(N, seed=5)
    close(risk.weighted_gradient(theta, w), w @ rows / N)
    batches = torch.tensor([[1, 5], [8, 8]])
    right = torch.stack([rows[batch].mean(0) + L2 * theta for batch in batches])
    close(risk.batch_gradients(theta, batches), right)
    close(risk.batch_gradient(theta, batches[0]), right[0])
    point = risk.linearize(theta)
    for _ in range(2):
        close(point.hvp(v), (H + L2 * identity) @ v, 1e-8)
        close(point.directional_derivatives(v), rows @ v)
    close(HessianOperator(risk, theta).to_dense(), H + L2 * identity, 1e-8)
    alone = [
        scales[i] * functional.hessian(lambda t, i=i: losses_at(name, t)[i], theta)
        for i in range(N)
    ]
    squares = torch.stack([Hi @ (Hi @ v) for Hi in alone]).mean(0)
    close(risk.squared_hessian_product(theta, v), squares, 1e-8)
    assert risk.layout.names == tuple(n for n, _ in Net().named_parameters())


@pytest.mark.filterwarnings("ignore:The loss does not depend")
def test_the_audit_holds(name):
    assert risk_of(name, chunk_size=4).audit().fails == ()


@pytest.mark.filterwarnings("ignore:The loss does not depend")
def test_at_other_points(name):
    """The module of f has the θ that is asked for, whatever was asked before."""
    risk = risk_of(name)
    for seed in (6, 7):
        theta = risk.params() + 0.3 * normal(risk.n_params, seed=seed)
        gradient = torch.autograd.functional.jacobian(
            lambda t: losses_at(name, t).mean(), theta
        )
        close(risk.gradient(theta), gradient)
        v = normal(risk.n_params, seed=8)
        H = torch.autograd.functional.hessian(
            lambda t: losses_at(name, t).mean(), theta
        )
        close(risk.linearize(theta).hvp(v), H @ v, 1e-8)
    stacked = torch.stack([theta, risk.params()])
    close(risk.losses_at(stacked)[0], losses_at(name, theta).mean().detach())
