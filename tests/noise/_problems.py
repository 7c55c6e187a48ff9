"""Small risks, each with its dense float64 description at every chain of its θ."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from flatmin.risk import EmpiricalRisk, LinearRegressionRisk, QuadraticRisk

from . import _dense

N = 25  # with batches of 3: eight whole ones and a ragged one


@dataclass(frozen=True)
class Problem:
    risk: object
    theta: torch.Tensor  # (*chains, D)
    points: list  # of _dense.Point, one a chain

    @property
    def point(self):
        (only,) = self.points
        return only


def _seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double()


def _normal(*shape, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def _mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def _cnn():  # 71 parameters: more than the 64 up to which eigenpairs are dense
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 2))


def _one_logit():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


_LABELS = torch.arange(N) % 3
_WEIGHTS = torch.linspace(0, 2, N, dtype=torch.float64)  # the first example counts 0

# Name -> what the module is, the loss for flatmin and for the dense description, X, y
# for the one and for the other, weights.
NETWORKS = {
    "mlp": (
        _mlp,
        "cross_entropy",
        _dense.cross_entropy,
        _normal(N, 4, seed=1),
        _LABELS,
        nn.functional.one_hot(_LABELS).double(),
        None,
    ),
    "cnn": (
        _cnn,
        "squared_error",
        _dense.squared_error,
        _normal(N, 1, 4, 4, seed=2),
        _normal(N, 2, seed=3),
        _normal(N, 2, seed=3),
        None,
    ),
    "weighted": (
        _one_logit,
        "binary_cross_entropy",
        _dense.binary_cross_entropy,
        _normal(N, 3, seed=4),
        (_LABELS > 0).double()[:, None],
        (_LABELS > 0).double()[:, None],
        _WEIGHTS,
    ),
    "weighted_cross_entropy": (
        _mlp,
        "cross_entropy",
        _dense.cross_entropy,
        _normal(N, 4, seed=1),
        _LABELS,
        nn.functional.one_hot(_LABELS).double(),
        _WEIGHTS,
    ),
}
NETWORKS["penalised"] = NETWORKS["weighted"]
L2 = {"penalised": 0.7}
ROOTS = {
    "mlp": _dense.cross_entropy_root,
    "cnn": _dense.squared_error_root,
    "weighted": _dense.binary_cross_entropy_root,
    "weighted_cross_entropy": _dense.cross_entropy_root,
}


def empirical_risk(name, **options):
    """Return flatmin's risk of a network; options as those of EmpiricalRisk."""
    build, loss, _, X, y, _, weights = NETWORKS[name]
    return EmpiricalRisk(
        _seeded(build),
        loss,
        X,
        y,
        sample_weight=weights,
        l2=L2.get(name, 0.0),
        **options,
    )


@cache
def network(name):
    """Return the dense description of a network."""
    build, _, loss, X, _, y, weights = NETWORKS[name]
    weights = torch.ones(N, dtype=torch.float64) if weights is None else weights
    module = _seeded(build)
    return _dense.Network(module, loss, X, y, weights, L2.get(name, 0.0))


def _network_problem(name, **options):
    risk = empirical_risk(name, **options)
    theta = risk.params()
    return Problem(risk, theta, [network(name).at(theta)])


def _quadratic(*chains, n=14, size=4):
    factor, slopes = _normal(size, size, seed=5), _normal(n, size, seed=6)
    minimum, theta = _normal(size, seed=7), _normal(*chains, size, seed=8)
    A, b = factor @ factor.T, slopes - slopes.mean(0)

    def losses(t):
        return (t - minimum) @ A @ (t - minimum) / 2 + b @ (t - minimum)

    points = [_dense.point(losses, lambda t: A, t) for t in theta.view(-1, size)]
    return Problem(QuadraticRisk(A, slopes, minimum), theta, points)


def _regression(*chains, n=13, size=5):
    X, y = _normal(n, size, seed=9), _normal(n, seed=10)
    theta = _normal(*chains, size, seed=11)

    def losses(t):
        return (X @ t - y) ** 2

    def gauss_newton(t):
        return 2 / n * X.T @ X

    def labels(t, law):
        return 4 * law.sigma**2 / n**2 * X.T @ X, torch.zeros_like(t)

    points = [
        _dense.point(losses, gauss_newton, t, labels) for t in theta.view(-1, size)
    ]
    return Problem(LinearRegressionRisk(X, y), theta, points)


_BUILDERS = {
    "mlp": lambda: _network_problem("mlp"),
    "cnn": lambda: _network_problem("cnn"),
    "weighted": lambda: _network_problem("weighted"),
    "ragged": lambda: _network_problem("weighted_cross_entropy", chunk_size=7),
    "penalised": lambda: _network_problem("penalised", chunk_size=7),
    "quadratic": lambda: _quadratic(),
    "quadratic_chains": lambda: _quadratic(2, 3),
    "regression_chains": lambda: _regression(4),
}
PROBLEMS = list(_BUILDERS)
CHAINS = ["quadratic_chains", "regression_chains"]


@cache
def problem(name):
    """Return a Problem in float64; the same one at every call."""
    return _BUILDERS[name]()


def cast(name, dtype):
    """Return the risk and θ of a problem in another dtype."""
    case = problem(name)
    if isinstance(case.risk, EmpiricalRisk):
        risk = empirical_risk(name, dtype=dtype)
    else:
        risk = LinearRegressionRisk(case.risk.X.to(dtype), case.risk.y.to(dtype))
    return risk, case.theta.to(dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients_at(name, theta):
    """Return g₀ at another θ of a problem's shape, by the dense description."""
    if name in NETWORKS or name == "ragged":
        described = network("weighted_cross_entropy" if name == "ragged" else name)
        return described.at(theta).mean
    risk = problem(name).risk
    t = theta.clone().requires_grad_()
    if isinstance(risk, QuadraticRisk):
        delta = t - risk.minimum
        losses = ((delta @ risk.matrix) * delta).sum() / 2
    else:
        losses = (t @ risk.X.T - risk.y).square().mean(-1).sum()
    return torch.autograd.grad(losses, t)[0]


class OneGradient:
    """A risk at one θ, which takes the gradient there once: many draws for less."""

    def __init__(self, risk, theta):
        self._risk, self._gradient = risk, risk.value_and_gradient(theta)

    def __getattr__(self, name):
        return getattr(self._risk, name)

    def value_and_gradient(self, theta):
        return self._gradient
