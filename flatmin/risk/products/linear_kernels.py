"""Kernels that are linear in one argument: H v, G v, J v, Jᵀu and gᵢᵀv of a chunk.

Each is a function ``(model, loss, theta, direction, X, y, weights)``, by forward mode
over reverse mode. It becomes a graph once, which serves all θ and all directions.
Where a chunk is filled up, it is with examples of weight 0.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flatmin._utils.columns import as_column
from flatmin._utils.trees import Inputs
from flatmin.risk.autodiff.pullback import pull_back
from flatmin.risk.autodiff.pushforward import push_forward
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel

__all__ = ["LINEAR_KERNELS"]


def _hvp(
    model: FlatModel,
    loss: ExampleLoss,
    theta: Tensor,
    v: Tensor,
    X: Inputs,
    y: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return N H v, the derivative of Σ ∇ℓ̃ᵢ along v."""

    def gradient(theta: Tensor) -> Tensor:
        return pull_back(
            lambda theta: loss.per_example(model.functional(theta, X), y),
            theta,
            lambda _losses: weights,
        )

    return push_forward(gradient, theta, v)


def _ggn(
    model: FlatModel,
    loss: ExampleLoss,
    theta: Tensor,
    v: Tensor,
    X: Inputs,
    y: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return N G v = Σ Jᵢᵀ Hᵢ Jᵢ v."""
    Jv = _jvp(model, loss, theta, v, X, y, weights)

    def slopes(outputs: Tensor) -> Tensor:
        return loss.hessian_product(outputs, y, Jv) * as_column(weights, outputs)

    return pull_back(lambda theta: model.functional(theta, X), theta, slopes)


def _jvp(
    model: FlatModel,
    loss: ExampleLoss,
    theta: Tensor,
    v: Tensor,
    X: Inputs,
    y: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return J v, shape (n, \\*output_shape)."""
    return push_forward(lambda theta: model.functional(theta, X), theta, v)


def _vjp(
    model: FlatModel,
    loss: ExampleLoss,
    theta: Tensor,
    u: Tensor,
    X: Inputs,
    y: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return Jᵀu for ``u`` of shape (n, \\*output_shape)."""
    return pull_back(lambda t: model.functional(t, X), theta, lambda _outputs: u)


def _directional_derivatives(
    model: FlatModel,
    loss: ExampleLoss,
    theta: Tensor,
    v: Tensor,
    X: Inputs,
    y: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return gᵢᵀv, shape (n,)."""

    def losses(theta: Tensor) -> Tensor:
        return loss.per_example(model.functional(theta, X), y) * weights

    return push_forward(losses, theta, v)


LINEAR_KERNELS: dict[str, Callable[..., Tensor]] = {
    "hvp": _hvp,
    "ggn": _ggn,
    "jvp": _jvp,
    "vjp": _vjp,
    "directional_derivatives": _directional_derivatives,
}
