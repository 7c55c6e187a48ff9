"""The penalty (λ/2)‖θ‖² of an empirical risk, at one θ or at many."""

from __future__ import annotations

from torch import Tensor

__all__ = ["add_penalty", "value_with_penalty"]


def add_penalty(
    value: Tensor, gradient: Tensor, theta: Tensor, l2: float
) -> tuple[Tensor, Tensor]:
    """Add (λ/2)‖θ‖² to a value, and its gradient λθ to a gradient.

    Parameters
    ----------
    value : Tensor of shape (\\*chains)
    gradient : Tensor of shape (\\*chains, D)
        Changed.
    theta : Tensor of shape (\\*chains, D)
    l2 : float
        λ.

    Returns
    -------
    value : Tensor of shape (\\*chains)
    gradient : Tensor of shape (\\*chains, D)
    """
    gradient.add_(theta, alpha=l2)
    return value_with_penalty(value, theta, l2), gradient


def value_with_penalty(value: Tensor, theta: Tensor, l2: float) -> Tensor:
    """Return a value and (λ/2)‖θ‖², added in float64.

    Parameters
    ----------
    value : Tensor of shape (\\*chains)
    theta : Tensor of shape (\\*chains, D)
    l2 : float
        λ.

    Returns
    -------
    Tensor of shape (\\*chains)
        In the value's dtype.
    """
    penalty = l2 / 2 * theta.double().square().sum(-1)
    return (value.double() + penalty).to(value.dtype)
