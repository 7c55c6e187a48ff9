"""What rounding makes of L, g₀ and diag(Σ), where it can be counted by hand."""

import pytest
import torch
from torch import nn

from flatmin.measures._rounding import CLEAR, gradient_moments
from flatmin.risk import EmpiricalRisk


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_a_line_with_one_example_that_counts(dtype):
    """f = θx with x = 4 once and 0 in 15 examples, y = 0: L = 16 θ²/16 = θ².

    At θ = 1 the gradients are 32 once and 0, of mean 2 and variance 64 - 4. Moved by a
    rounding θ is 1 ± eps, L is 1 ± 2 eps and the gradient 32 ± 32 eps, all exact. One
    operation more adds eps |L|, eps |g₀|, and eps (2² + 60)^(1/2) to a gᵢ.
    """
    net = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.ones_(net.weight)
    x = torch.zeros(16, 1, dtype=dtype)
    x[5] = 4
    risk = EmpiricalRisk(net, "squared_error", x, 0 * x)
    moments = gradient_moments(risk, risk.params())
    assert float(moments.variances) == 60
    eps, eps64 = torch.finfo(dtype).eps, torch.finfo(torch.float64).eps
    assert float(moments.value_rounding) == pytest.approx(2 * eps + eps, abs=0)
    assert float(moments.mean_rounding) == pytest.approx(2 * eps + 2 * eps, abs=0)
    # A variance is a square; its sums over 16 examples are taken in float64.
    of_rows = (CLEAR * (32 / 16 * eps + 8 * eps)) ** 2
    of_sums = CLEAR * 16**0.5 * eps64 * 8**2
    noise_rounding = float(moments.noise_rounding)
    assert noise_rounding == pytest.approx(of_rows + of_sums, abs=0)
    assert moments.has_noise
    assert moments.has_gradient
    assert moments.has_loss
