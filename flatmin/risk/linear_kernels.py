"""Kernels that are linear in one argument: H v, G v, J v, Jᵀu and gᵢᵀv of a chunk.

Each is a function ``(theta, direction, X, y, weights)``, by forward mode over reverse
mode, to be traced once and then used at many θ and for many directions. Padding is an
example of weight 0.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.func import grad, jvp, vjp

from flatmin.risk.losses import ExampleLoss
from flatmin.risk.model import FlatModel

__all__ = ["LINEAR_KERNELS", "LinearKernel"]

LinearKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def hvp(model: FlatModel, loss: ExampleLoss) -> LinearKernel:
    """Return the kernel of N H v, the derivative of Σ ∇ℓ̃ᵢ along v.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss

    Returns
    -------
    callable
    """

    def kernel(
        theta: Tensor, v: Tensor, X: Tensor, y: Tensor, weights: Tensor
    ) -> Tensor:
        def total(theta: Tensor) -> Tensor:
            losses = loss.per_example(model.functional(theta, X), y)
            return (losses * weights).sum()

        product: Tensor = jvp(grad(total), (theta,), (v,))[1]
        return product

    return kernel


def ggn(model: FlatModel, loss: ExampleLoss) -> LinearKernel:
    """Return the kernel of N G v = Σ Jᵢᵀ Hᵢ Jᵢ v.

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss

    Returns
    -------
    callable
    """

    def kernel(
        theta: Tensor, v: Tensor, X: Tensor, y: Tensor, weights: Tensor
    ) -> Tensor:
        def outputs(theta: Tensor) -> Tensor:
            return model.functional(theta, X)

        Jv = jvp(outputs, (theta,), (v,))[1]
        pulled = vjp(outputs, theta)
        f, pull = pulled[0], pulled[1]
        HJv = loss.hessian_product(f, y, Jv) * _as_column(weights, f)
        product: Tensor = pull(HJv)[0]
        return product

    return kernel


def jacobian_product(model: FlatModel, loss: ExampleLoss) -> LinearKernel:
    """Return the kernel of J v, shape (n, \\*output_shape).

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss

    Returns
    -------
    callable
    """

    def kernel(
        theta: Tensor, v: Tensor, X: Tensor, y: Tensor, weights: Tensor
    ) -> Tensor:
        def outputs(theta: Tensor) -> Tensor:
            return model.functional(theta, X)

        tangent: Tensor = jvp(outputs, (theta,), (v,))[1]
        return tangent

    return kernel


def pullback(model: FlatModel, loss: ExampleLoss) -> LinearKernel:
    """Return the kernel of Jᵀu for ``u`` of shape (n, \\*output_shape).

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss

    Returns
    -------
    callable
    """

    def kernel(
        theta: Tensor, u: Tensor, X: Tensor, y: Tensor, weights: Tensor
    ) -> Tensor:
        def outputs(theta: Tensor) -> Tensor:
            return model.functional(theta, X)

        pulled: Tensor = vjp(outputs, theta)[1](u)[0]
        return pulled

    return kernel


def slopes(model: FlatModel, loss: ExampleLoss) -> LinearKernel:
    """Return the kernel of gᵢᵀv, shape (n,).

    Parameters
    ----------
    model : FlatModel
    loss : ExampleLoss

    Returns
    -------
    callable
    """

    def kernel(
        theta: Tensor, v: Tensor, X: Tensor, y: Tensor, weights: Tensor
    ) -> Tensor:
        def losses(theta: Tensor) -> Tensor:
            return loss.per_example(model.functional(theta, X), y) * weights

        tangent: Tensor = jvp(losses, (theta,), (v,))[1]
        return tangent

    return kernel


LINEAR_KERNELS: dict[str, Callable[[FlatModel, ExampleLoss], LinearKernel]] = {
    "hvp": hvp,
    "ggn": ggn,
    "jvp": jacobian_product,
    "vjp": pullback,
    "directional_derivatives": slopes,
}


def _as_column(weights: Tensor, values: Tensor) -> Tensor:
    return weights.view(-1, *(1 for _ in values.shape[1:]))
