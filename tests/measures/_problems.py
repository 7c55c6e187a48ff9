"""A regression large enough for estimates, and networks with dense oracles."""

from functools import cache

import torch
from torch import nn

from flatmin.risk import EmpiricalRisk, LinearRegressionRisk

N, D = 80, 50


@cache
def regression():
    """Return a risk, a θ, and H and Σ there."""
    rng = torch.Generator().manual_seed(0)
    scales = torch.linspace(2, 0.1, D, dtype=torch.float64)
    X = torch.randn(N, D, generator=rng, dtype=torch.float64) * scales
    y = torch.randn(N, generator=rng, dtype=torch.float64)
    theta = torch.randn(D, generator=rng, dtype=torch.float64) / 5
    risk = LinearRegressionRisk(X, y)
    return risk, theta, risk.hessian(theta), risk.gradient_covariance(theta)


def randn(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def attention():
    """A network in float32, θ, and where the bias of its keys is: without effect."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(4, 1, 4, dropout=0.0, batch_first=True)
        module = nn.Sequential(block, nn.Flatten(), nn.Linear(12, 2)).eval()
        X = torch.randn(10, 3, 4)
    risk = EmpiricalRisk(module, "cross_entropy", X, torch.arange(10) % 2)
    return risk, risk.params(), risk.layout.indices("0.self_attn.in_proj_bias")[4:8]
