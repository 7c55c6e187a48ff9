"""The step of sharpness-aware minimisation, by hand, at any scale of the loss."""

import pytest
import torch
from torch import nn

from flatmin.noise import make_noise_law
from flatmin.risk import EmpiricalRisk


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e19, 1e30])
def test_a_step_of_length_rho_at_any_scale(scale, dtype):
    """L = s (x² + 9 y²)/2 has g₀ = s (2, 9) at (2, 1), and u = (2, 9)/√85."""
    X = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=dtype)
    net = nn.Linear(2, 1, bias=False).to(dtype)

    def loss(outputs, targets):
        return scale * (outputs[:, 0] - targets).square()

    risk = EmpiricalRisk(net, loss, X, torch.zeros(2, dtype=dtype))
    theta = torch.tensor([2.0, 1.0], dtype=dtype)
    law = make_noise_law("sam", rho=1.0)
    _, gradient = law.noisy_gradient(risk, theta, None, torch.Generator())
    there = theta.double() + torch.tensor([2.0, 9.0]).double() / 85**0.5
    right = torch.tensor([1.0, 9.0]).double() * there
    torch.testing.assert_close(gradient.double() / scale, right, rtol=1e-5, atol=0)
