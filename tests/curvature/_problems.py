"""Small risks with dense oracles, and analytic ones with chains."""

from functools import cache

import torch
from torch import nn

from flatmin.risk import EmpiricalRisk, LinearRegressionRisk, QuadraticRisk

from .. import oracles

N = 12
WEIGHTS = torch.linspace(0.2, 2, N, dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


@cache
def network(width=3):
    """Return module, X, y and a θ; D = 8 width + 3, more or fewer than N."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)
        ).double()
        X, y = torch.randn(N, 4, dtype=torch.float64), torch.arange(N) % 3
    return module, X, y, oracles.flat_parameters(module) + 0.5


def empirical(width=3, *, chunk_size=5, weights=WEIGHTS, dtype=torch.float64):
    """Return flatmin's risk and θ."""
    module, X, y, theta = network(width)
    risk = EmpiricalRisk(
        module,
        "cross_entropy",
        X,
        y,
        sample_weight=weights,
        chunk_size=chunk_size,
        dtype=dtype,
    )
    return risk, theta.to(dtype, copy=True)


@cache
def oracle(width=3, *, weighted=True):
    module, X, y, theta = network(width)
    return oracles.dense(
        module,
        oracles.cross_entropy,
        X,
        y,
        theta,
        weights=WEIGHTS if weighted else None,
    )


def quadratic():
    A = randn(4, 4, seed=1)
    return QuadraticRisk(A @ A.T, randn(N, 4), randn(4, seed=2))


def saddle():
    return QuadraticRisk(
        torch.diag(torch.tensor([-3.0, 2.0, 1.0])).double(), randn(N, 3)
    )


def regression():
    return LinearRegressionRisk(randn(N, 4), randn(N, seed=1))


ANALYTIC = {"quadratic": quadratic, "regression": regression}
CHAINS = [(), (5,), (2, 3)]
