"""Softmax and sigmoid where a prediction is sure, without differences of rounded ones.

There 1 - p is a few roundings, or 0, and with it the loss, its slope p - y and its
Hessian p(1 - p). Here they are sums of the small probabilities. To autograd, too: what
is written is what it differentiates, so every derivative keeps its digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["below_the_largest", "logistic_loss", "sigmoid_variance", "softmax_product"]


def below_the_largest(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return d and r with log softmax(f) = d - r.

    With a the class of the largest logit, d = f - f_a and r = log(1 + Σ exp(d_c)), the
    sum over c ≠ a: a number that keeps its digits where it is small.

    Parameters
    ----------
    outputs : Tensor of shape (n, C, ...)

    Returns
    -------
    d : Tensor of shape (n, C, ...)
    r : Tensor of shape (n, 1, ...)
        NaN with its derivatives where the largest logit is infinite, as PyTorch's.
    """
    top, a = outputs.max(1, keepdim=True)
    # d_a is a constant: through it a slope of one would pass, there and back. Of an
    # infinite logit it is NaN.
    d = (outputs - top).scatter(1, a, (top - top).detach())
    rest = d.exp().scatter(1, a, 0).sum(1, keepdim=True)
    # 0 and its slopes, or NaN and its slopes: a difference alone has slopes of 0.
    return d, rest.log1p() + top * (0 * top)


def softmax_product(outputs: Tensor, u: Tensor) -> Tensor:
    """Return (diag(p) - ppᵀ) u, p the softmax over the second axis.

    Parameters
    ----------
    outputs : Tensor of shape (n, C, ...)
    u : Tensor of shape (n, C, ...)

    Returns
    -------
    Tensor of shape (n, C, ...)
    """
    p = outputs.softmax(1)
    # A constant in u drops out; with that of the largest class the sum is of small p.
    u = u - u.gather(1, outputs.argmax(1, keepdim=True))
    return p * (u - (p * u).sum(1, keepdim=True))


def sigmoid_variance(outputs: Tensor) -> Tensor:
    """Return p(1 - p), p the sigmoid.

    Parameters
    ----------
    outputs : Tensor

    Returns
    -------
    Tensor
        In the same shape.
    """
    return outputs.sigmoid() * (-outputs).sigmoid()


def logistic_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return -y log σ(f) - (1 - y) log σ(-f).

    Parameters
    ----------
    outputs : Tensor
    targets : Tensor
        y, in the same shape.

    Returns
    -------
    Tensor
        In the same shape.
    """
    # With s the label that is more probable, f (s - y) + log(1 + exp(-|f|)). At 0 the
    # two parts have kinks, and their sum has none.
    likelier = outputs > 0
    size = torch.where(likelier, outputs, -outputs)
    return outputs * (likelier.to(targets.dtype) - targets) + (-size).exp().log1p()
