"""A regression large enough for estimates, and networks with dense oracles."""

from functools import cache

import torch

from flatmin.risk import LinearRegressionRisk

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
