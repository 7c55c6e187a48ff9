"""A Bernoulli batch is a batch: its gradient is a sum over some of the examples."""

import pytest
import torch

from flatmin.noise import make_noise_law
from flatmin.risk import LinearRegressionRisk

from ._problems import generator


@pytest.mark.parametrize("m", [2, 5])
def test_the_gradient_is_the_sum_over_the_batch(m):
    # Each example has a parameter of its own, so the gradient tells who was drawn.
    y = torch.arange(1.0, 8).double()
    risk, theta = (
        LinearRegressionRisk(torch.eye(7).double(), y),
        torch.zeros(7).double(),
    )
    law, rng = make_noise_law("bernoulli", batch_size=m), generator()
    state = law.refresh(risk, theta, rng)
    draws = torch.stack(
        [law.noisy_gradient(risk, theta, state, rng)[1] for _ in range(400)]
    )
    shares = draws / (-2 * y / m)  # (1/m) bᵢgᵢ with gᵢ = -2 yᵢ
    torch.testing.assert_close(shares, shares.round())
    assert set(shares.round().abs().unique().tolist()) == {0, 1}
    # 2800 coins of probability m/7.
    assert float(shares.mean()) == pytest.approx(m / 7, abs=4 * 0.5 / 2800**0.5)


@pytest.mark.parametrize("m", [2, 5, 7])
def test_the_covariance_by_hand(m):
    """C = (1 - m/N)/m (1/N) Σ gᵢgᵢᵀ with gᵢ = -2 yᵢeᵢ; 0 where every batch is all."""
    y = torch.arange(1.0, 8).double()
    risk = LinearRegressionRisk(torch.eye(7).double(), y)
    theta = torch.zeros(7).double()
    law = make_noise_law("bernoulli", batch_size=m, noise_scale=3.0)
    state = law.refresh(risk, theta, generator())
    variances = 9 * (1 - m / 7) / m * 4 * y.square() / 7
    covariance = law.covariance(risk, theta, state).to_dense()
    torch.testing.assert_close(covariance, variances.diag())
    torch.testing.assert_close(law.trace(risk, theta, state), variances.sum())
