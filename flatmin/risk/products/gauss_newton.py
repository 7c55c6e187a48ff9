"""Kernels of the Gauss-Newton matrix G = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ, Hᵢ = SᵢSᵢᵀ."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flatmin._utils.columns import as_column
from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import (
    ExampleScalars,
    inner_products,
    losses_and_pullback,
)
from flatmin.risk.example_sums.sums import ExampleSums
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel

__all__ = ["gauss_newton_draw", "gauss_newton_example_traces", "weighted_root"]


def gauss_newton_draw(
    model: FlatModel,
    loss: ExampleLoss,
    chunk: Chunk,
    z: Tensor,
    scale: Tensor,
    n_examples: int,
) -> tuple[Tensor, Tensor]:
    """Return ℓ̃ᵢ and this chunk's part of g₀ + s ε, ε ~ N(0, G), by one backward pass.

    The cotangent (1/N) ∂ℓ̃ᵢ/∂fᵢ + (s/√N) Sᵢzᵢ at the output is pulled back through
    the network. E[ε εᵀ] = (1/N) Σ Jᵢᵀ Sᵢ Sᵢᵀ Jᵢ = G, so the draw is exact at the
    price of a gradient.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    loss : ExampleLoss
    chunk : Chunk
    z : Tensor of shape (n, \\*output_shape)
        Standard normal.
    scale : Tensor of shape ()
        s.
    n_examples : int
        N.

    Returns
    -------
    losses : Tensor of shape (n,)
    gradient : Tensor of shape (D,)
    """

    def cotangents(outputs: Tensor, slopes: Tensor) -> Tensor:
        noise = weighted_root(loss.root_product, outputs, z, *chunk.targets_and_weights)
        part: Tensor = noise * (scale / n_examples**0.5)
        return slopes / n_examples + part

    return losses_and_pullback(model, loss, chunk, cotangents)


def gauss_newton_example_traces(
    model: FlatModel, loss: ExampleLoss, sums: ExampleSums, chunk: Chunk, z: Tensor
) -> Tensor:
    """Return ‖Jᵢᵀ Sᵢ zᵢ‖², whose mean over z is Tr(Jᵢᵀ Hᵢ Jᵢ).

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    loss : ExampleLoss
    sums : ExampleSums
    chunk : Chunk
    z : Tensor of shape (k, n, \\*output_shape)
        Signs, of k sweeps; the value is exact for a single output.

    Returns
    -------
    Tensor of shape (k, n)
        In float64.
    """
    # Beforehand: the root of a loss that is a callable does not vectorise.
    outputs = model.evaluate(chunk.X)
    others = chunk.targets_and_weights
    roots = [weighted_root(loss.sign_product, outputs, of, *others) for of in z]
    return sums.several_squared_norms(
        [ExampleScalars(chunk.X, (root,), inner_products) for root in roots]
    )


def weighted_root(
    product: Callable[[Tensor, Tensor, Tensor], Tensor],
    outputs: Tensor,
    z: Tensor,
    y: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return Sᵢzᵢ of ℓ̃ᵢ, which a weight wᵢ of the example scales by √wᵢ.

    Parameters
    ----------
    product : callable
        ``root_product`` or ``sign_product`` of a loss.
    outputs : Tensor of shape (n, \\*output_shape)
    z : Tensor of shape (n, \\*output_shape)
    y : Tensor of shape (n, ...)
    weights : Tensor of shape (n,), default=None

    Returns
    -------
    Tensor of shape (n, \\*output_shape)
    """
    root = product(outputs, y, z)
    if weights is None:
        return root
    return root * as_column(weights.sqrt(), root)
