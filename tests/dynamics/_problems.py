"""A small network, its risk, and a descent on it."""

import torch
from torch import nn

from flatmin.dynamics import FlatBinding, NoisyDescent
from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk


def network():
    """Return a network of 26 parameters in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def risk(module=None, scale=1.0):
    """Return the risk of a regression with 12 examples."""
    rng = torch.Generator().manual_seed(1)
    X = scale * torch.randn(12, 3, generator=rng, dtype=torch.float64)
    y = torch.randn(12, 2, generator=rng, dtype=torch.float64)
    return EmpiricalRisk(module or network(), "squared_error", X, y)


def descent(law="gd", *, lr=0.1, optimizer=torch.optim.SGD, **params):
    """Return a descent from the network's initial parameters."""
    law = make_noise_law(law) if isinstance(law, str) else law
    module = network()
    binding = FlatBinding(module)
    step = optimizer(binding.params, lr=lr)
    rng = torch.Generator().manual_seed(2)
    return NoisyDescent(risk(module), law, binding, step, rng=rng, **params)
