"""How large a draw from N(0, Σ) is where there are few examples."""

import numpy as np
import torch

from flatmin import NoiseCovarianceAnalyzer


def test_the_size_of_a_draw_with_three_examples():
    """With N = 3 a divisor of N - 1 would be off by 3/2; Σ has the divisor N."""
    net = torch.nn.Linear(2, 1, bias=False).double()
    X = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    y = np.array([1.0, -1.0, 3.0])
    theta = net.weight.detach().numpy()[0]
    gradients = 2 * (X @ theta - y)[:, None] * X
    sigma = np.cov(gradients.T, ddof=0)
    model = NoiseCovarianceAnalyzer(net, loss="squared_error", random_state=0)
    draws = model.fit(X, y).sample(1000)
    sizes = np.square(draws).sum(1)
    stderr = sizes.std() / len(sizes) ** 0.5
    assert stderr < 0.06 * np.trace(sigma)
    assert abs(sizes.mean() - np.trace(sigma)) < 3 * stderr
