"""Gradient descent of many chains at once, each to one training loss."""

import torch


def descend_to_loss(risk, theta, loss, *, lr, max_iter):
    """Return θ of the first iterates with L(θ) ≤ loss, and which chains got there.

    Noise holds the loss up, and flat basins converge more slowly: after an equal number
    of steps what is left of the loss would pass for curvature.
    """
    for _ in range(max_iter):
        values, gradients = risk.value_and_gradient(theta)
        stands = values <= loss
        if stands.all():
            break
        theta = theta - lr * torch.where(stands.unsqueeze(-1), 0.0, gradients)
    return theta, risk.value(theta) <= loss
