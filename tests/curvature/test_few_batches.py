"""Two minibatches are the fewest that have a covariance."""

import torch

from flatmin.curvature import GradientCovarianceOperator
from flatmin.risk import LinearRegressionRisk

from ._problems import N, randn


def test_two_minibatches():
    """Their covariance, ddof 1, is ½ (a - b)(a - b)ᵀ with the mean gradients a, b."""
    X, y, theta = randn(N, 3), randn(N, seed=1), randn(3, seed=2)
    batches = torch.tensor([[0, 1], [2, 4]])
    gradients = 2 * (X @ theta - y).unsqueeze(1) * X
    a, b = gradients[batches].mean(1)
    risk = LinearRegressionRisk(X, y)
    operator = GradientCovarianceOperator(risk, theta, batches=batches)
    torch.testing.assert_close(operator.to_dense(), torch.outer(a - b, a - b) / 2)
