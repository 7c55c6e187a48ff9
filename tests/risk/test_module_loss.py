"""Losses that call the module themselves, beside dense float64 autograd."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from flatmin.curvature import FisherOperator, GGNOperator, HessianOperator
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk, ModuleLoss, resolve_loss

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
@pytest.mark.parametrize("name", ["physics", "masked"])
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


@pytest.mark.filterwarnings("ignore:The loss does not depend")
def test_it_goes_along():
    risk = risk_of("physics", l2=L2, chunk_size=4)
    theta, value = risk.params(), risk.value(risk.params())
    for other in (
        risk.to(dtype="float32").to(dtype="float64"),
        pickle.loads(pickle.dumps(risk)),
        risk.subset(torch.arange(N)),
        risk.with_module(Net()),
    ):
        close(other.value(theta), value, 1e-5)
        close(other.gradient(theta), risk.gradient(theta), 1e-5)
    net = Net()
    nn.init.constant_(net.last.weight, 0.5)
    other = risk.with_module(net)
    assert not torch.equal(other.params(), theta)
    right = losses_at("physics", other.params()).mean().detach()
    close(other.value(other.params()) - L2 / 2 * other.params().square().sum(), right)
    risk.update_from(net)
    close(risk.params(), other.params())
    close(risk.value(risk.params()), other.value(other.params()))


def test_in_float32():
    f, X, y, _ = CASES["physics"]
    net = Net().float()
    risk = EmpiricalRisk(net, ModuleLoss(f), X, y)
    assert risk.value(risk.params()).dtype == torch.float32
    close(
        risk.value(risk.params()),
        losses_at("physics", risk.params().double()).mean().detach(),
        1e-5,
    )


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return rows_of(MAPPING, i), torch.arange(N)[i] % 3


@pytest.mark.parametrize("target", [None, "y"])
def test_a_data_set(target):
    class Mappings(Pairs):
        def __getitem__(self, i):
            X, y = super().__getitem__(i)
            return {**X, "y": y}

    held = risk_of("masked", chunk_size=4)
    data = Pairs() if target is None else Mappings()
    read = EmpiricalRisk(
        Net(n_out=2), ModuleLoss(masked), data, target=target, chunk_size=4
    )
    theta, v = held.params(), normal(held.n_params)
    close(read.value_and_gradient(theta)[0], held.value(theta))
    close(read.gradient_variances(theta), held.gradient_variances(theta))
    close(read.linearize(theta).hvp(v), held.linearize(theta).hvp(v))
    again = read.to(dtype="float32").to(dtype="float64")
    close(again.value(theta), held.value(theta), 1e-6)


@pytest.mark.parametrize("name", ["sgd", "gld_full", "gld_hessian", "gld_leading"])
def test_laws(name):
    risk = risk_of("masked")
    theta = risk.params()
    law = make_noise_law(name)
    law.check(risk)
    state = law.refresh(risk, theta, rng())
    noisy = law.noisy_gradient(risk, theta, state, rng())[1]
    assert bool(noisy.isfinite().all())
    assert not torch.equal(noisy, risk.gradient(theta))
    rows = torch.autograd.functional.jacobian(lambda t: losses_at("masked", t), theta)
    m = min(20, N // 2 if name == "gld_leading" else N)
    right = rows.var(0, correction=0).sum() / m
    if name != "gld_leading":
        close(law.trace(risk, theta, state), right, 1e-6)


def test_what_needs_outputs_is_refused():
    risk = risk_of("masked")
    theta = risk.params()
    law = make_noise_law("gld_ggn")
    for ask in (
        lambda: law.check(risk),
        lambda: law.refresh(risk, theta, rng()),
        lambda: GGNOperator(risk, theta) @ theta,
        lambda: risk.gauss_newton_traces(theta),
        lambda: risk.gauss_newton_traces(theta, rng()),
        lambda: risk.value_and_gauss_newton_draw(theta, torch.ones(()).double(), rng()),
    ):
        with pytest.raises(ValueError, match="the Hessian of the loss in the outputs"):
            ask()
    for ask in (
        lambda: FisherOperator(risk, theta),
        risk.check_likelihood,
        lambda: risk.model_slopes(theta, rng()),
    ):
        with pytest.raises(TypeError, match="needs a likelihood of outputs"):
            ask()
    with pytest.raises(ValueError, match="Label noise needs labels"):
        make_noise_law("label_noise").check(risk)


OTHER = Net()


def closes_over_another(module, X, y):
    return (OTHER(X).squeeze(1) - y).square()


def normalises(module, X, y):
    losses = (module(X).squeeze(1) - y).square()
    return losses / losses.sum()


REFUSED = {
    "mean": (lambda m, X, y: m(X).mean(), r"shape \(\) for n = 3; do not average"),
    "column": (lambda m, X, y: m(X), r"shape \(3, 1\) for n = 3"),
    "short": (lambda m, X, y: m(X)[1:, 0], r"shape \(2,\) for n = 3"),
    "number": (lambda m, X, y: float(m(X).sum()), "must return a Tensor.*Got float"),
    "error": (lambda m, X, y: m.absent(X), "raised AttributeError: .*absent"),
    "key": (lambda m, X, y: y["a"], "called as f.module, X, y.*raised"),
    "others": (normalises, "must not depend on the others"),
    "another": (closes_over_another, "must depend on a parameter"),
    "random": (
        lambda m, X, y: F.dropout(m(X), training=True)[:, 0],
        "the same output for the same input",
    ),
    "two arguments": (lambda X, y: X, "f must be a function of .module, X, y."),
}


@pytest.mark.parametrize(("f", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(f, message):
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        EmpiricalRisk(Net(), ModuleLoss(f), POINTS, normal(N))


def test_the_module_of_the_risk_is_the_one_to_use():
    net = Net()

    def own(module, X, y):
        return (net(X).squeeze(1) - y).square()

    with pytest.raises(ValueError, match=r"original|must depend on a parameter"):
        EmpiricalRisk(net, ModuleLoss(own), POINTS, normal(N))


def test_more_that_is_refused():
    loss = ModuleLoss(heat)
    with pytest.raises(ValueError, match="output_transform too"):
        EmpiricalRisk(Net(), loss, POINTS, normal(N), output_transform=len)
    with pytest.raises(ValueError, match=r"as many examples\. Got 9 and 3"):
        EmpiricalRisk(Net(), loss, POINTS, normal(3))
    with pytest.raises(TypeError, match="no function of outputs and targets"):
        resolve_loss(loss)
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module"):
        EmpiricalRisk("net", loss, POINTS, normal(N))
    with pytest.raises(ValueError, match="y must be given"):
        EmpiricalRisk(Net(), "squared_error", POINTS)


def test_the_data_stay_as_they_are():
    X, y = POINTS.clone(), normal(N, seed=3)
    risk = EmpiricalRisk(Net(), ModuleLoss(heat), X, y)
    risk.gradient(risk.params())
    assert not X.requires_grad
    assert torch.equal(X, POINTS)
    arrays = EmpiricalRisk(Net(), ModuleLoss(heat), np.asarray(X), np.asarray(y))
    close(arrays.value(risk.params()), risk.value(risk.params()))


def test_integers_become_what_the_module_takes():
    def f(module, X, y):
        return module(X).square().sum(1)

    X = torch.arange(2 * N).reshape(N, 2)
    whole = EmpiricalRisk(Net(), ModuleLoss(f), X)
    real = EmpiricalRisk(Net(), ModuleLoss(f), X.double())
    close(whole.value(whole.params()), real.value(real.params()))
