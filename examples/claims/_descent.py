"""Gradient descent of many chains at once, each to one training loss."""

import torch


def descend_to_loss(risk, theta, loss, *, lr, max_iter):
    """Return θ of the first iterates with L(θ) ≤ loss, and which chains got there.

    A chain that begins there already has another loss than the rest: it did not.

    Noise holds the loss up, and flat basins converge more slowly: after an equal number
    of steps what is left of the loss would pass for curvature.
    """
    above = risk.value(theta) > loss
    for _ in range(max_iter):
        values, gradients = risk.value_and_gradient(theta)
        stands = values <= loss
        if stands.all():
            break
        theta = theta - lr * torch.where(stands.unsqueeze(-1), 0.0, gradients)
    return theta, above & (risk.value(theta) <= loss)
