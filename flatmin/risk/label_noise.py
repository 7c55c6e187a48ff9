"""Labels drawn anew: what that does to the slopes of the losses in the outputs.

For the losses here s = ∂ℓᵢ/∂fᵢ is affine in the label, so that neither s(y') - E s(y')
nor its covariance Kᵢ depends on the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin.risk.data.chunks import Chunk
from flatmin.risk.example_sums.scalars import (
    ExampleScalars,
    inner_products,
    losses_and_pullback,
)
from flatmin.risk.example_sums.sums import ExampleSums
from flatmin.risk.losses.cross_entropy import CrossEntropy
from flatmin.risk.losses.elementwise import BinaryCrossEntropy, SquaredError
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.network.model import FlatModel

__all__ = [
    "LabelDraw",
    "check_label_noise",
    "gradient_with_slopes",
    "label_kernel_product",
    "label_roots",
    "label_slopes",
    "label_uniforms",
    "pulled_back_squares",
]


@dataclass(frozen=True)
class LabelDraw:
    """How a label is drawn anew.

    Attributes
    ----------
    sigma : float
        Of squared error: y' = y + σ z with z ~ N(0, I).
    flip_probability : float
        p of cross-entropy, where a label becomes one of the C - 1 others, and of binary
        cross-entropy, where it becomes 1 - y.
    centred : bool
        Whether the slopes' mean E s(y') is taken away, or else s(y).

    Examples
    --------
    >>> from flatmin.risk import LabelDraw
    >>> LabelDraw(sigma=0.5, flip_probability=0.0)
    LabelDraw(sigma=0.5, flip_probability=0.0, centred=True)
    """

    sigma: float
    flip_probability: float
    centred: bool = True


def check_draw(draw: object) -> None:
    """Raise unless something is a :class:`LabelDraw`.

    Parameters
    ----------
    draw : object

    Raises
    ------
    TypeError
        If it is not.
    """
    if not isinstance(draw, LabelDraw):
        raise TypeError(f"draw must be a LabelDraw. Got {type(draw).__name__}.")


def check_label_noise(loss: ExampleLoss, targets: Tensor) -> None:
    """Raise if the labels of a loss cannot be drawn anew.

    Parameters
    ----------
    loss : ExampleLoss
    targets : Tensor of shape (n, ...)

    Raises
    ------
    ValueError
        Says what is needed, and what was got.
    """
    plain = isinstance(loss, SquaredError | BinaryCrossEntropy)
    if isinstance(loss, CrossEntropy):
        is_index = not targets.is_floating_point()
        plain = is_index and loss.label_smoothing == 0
        plain = plain and loss.classes.weight is None
        plain = plain and bool(loss.classes.counted(targets).all())
    if not plain:
        raise ValueError(
            "Label noise needs labels to draw anew: class indices under plain "
            "cross-entropy (without class weights, label smoothing or labels that are "
            f"left out), binary_cross_entropy, or squared_error. Got {loss.name} with "
            f"targets of {targets.dtype}; use one of these losses, or another law."
        )


def label_uniforms(
    loss: ExampleLoss,
    n_examples: int,
    output_shape: tuple[int, ...],
    rng: torch.Generator,
    like: Tensor,
) -> Tensor:
    """Draw what the new labels of all examples are made of, whatever the chunks.

    Parameters
    ----------
    loss : ExampleLoss
    n_examples : int
    output_shape : tuple of int
    rng : torch.Generator
    like : Tensor
        Its dtype and device.

    Returns
    -------
    Tensor of shape (N, \\*output_shape), or (N, \\*positions) for cross-entropy
        Normal for squared error, else uniform.
    """
    shape = output_shape[1:] if isinstance(loss, CrossEntropy) else output_shape
    draw = torch.randn if isinstance(loss, SquaredError) else torch.rand
    return draw(
        (n_examples, *shape), generator=rng, dtype=like.dtype, device=like.device
    )


def label_slopes(
    loss: ExampleLoss,
    targets: Tensor,
    random: Tensor,
    output_shape: tuple[int, ...],
    draw: LabelDraw,
) -> Tensor:
    """Return s(y') - E s(y'), or s(y') - s(y), of ℓᵢ without weights.

    Parameters
    ----------
    loss : ExampleLoss
    targets : Tensor of shape (n, ...)
    random : Tensor
        These examples' part of :func:`label_uniforms`.
    output_shape : tuple of int
    draw : LabelDraw

    Returns
    -------
    Tensor of shape (n, \\*output_shape)
    """
    p = draw.flip_probability
    if isinstance(loss, SquaredError):
        return random * (-2 * draw.sigma / math.prod(output_shape))
    if isinstance(loss, BinaryCrossEntropy):
        change = 1 - 2 * targets
        flipped = (random < p).to(random.dtype)
        return (
            -(flipped - (p if draw.centred else 0)) * change / math.prod(output_shape)
        )
    n_classes = output_shape[0]
    # Where the number is below p, the number over p is uniform once more.
    share = (random / p).clamp(max=1) if p > 0 else torch.ones_like(random)
    shift = 1 + (share * (n_classes - 1)).long().clamp(max=max(0, n_classes - 2))
    drawn = torch.where(random < p, (targets + shift) % n_classes, targets)
    mean = _class_probabilities(targets, n_classes, p if draw.centred else 0, random)
    return -(_one_hot(drawn, n_classes, random) - mean) / math.prod(output_shape[1:])


def label_kernel_product(
    loss: ExampleLoss, targets: Tensor, u: Tensor, draw: LabelDraw
) -> Tensor:
    """Return Kᵢuᵢ, Kᵢ the covariance of s(y') of ℓᵢ without weights.

    Parameters
    ----------
    loss : ExampleLoss
    targets : Tensor of shape (n, ...)
    u : Tensor of shape (n, \\*output_shape)
    draw : LabelDraw

    Returns
    -------
    Tensor of shape (n, \\*output_shape)
    """
    p, size = draw.flip_probability, u.shape[1:].numel()
    if isinstance(loss, SquaredError):
        return u * (2 * draw.sigma / size) ** 2
    if isinstance(loss, BinaryCrossEntropy):
        return u * (p * (1 - p) * (1 - 2 * targets).square() / size**2)
    q = _class_probabilities(targets, u.shape[1], p, u)
    product = q * u - q * (q * u).sum(1, keepdim=True)
    return product / u.shape[2:].numel() ** 2


def label_roots(
    loss: ExampleLoss,
    targets: Tensor,
    output_shape: tuple[int, ...],
    draw: LabelDraw,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Yield the columns r of roots, Kᵢ = Σ rᵢrᵢᵀ; one for each output.

    Parameters
    ----------
    loss : ExampleLoss
    targets : Tensor of shape (n, ...)
    output_shape : tuple of int
    draw : LabelDraw
    dtype : torch.dtype
        Of the outputs.

    Yields
    ------
    Tensor of shape (n, \\*output_shape)
    """
    size = math.prod(output_shape)
    units = torch.eye(size, dtype=dtype, device=targets.device)
    for unit in units:
        e = unit.view(output_shape).expand(len(targets), *output_shape)
        if not isinstance(loss, CrossEntropy):
            yield label_kernel_product(loss, targets, e, draw).sqrt()
            continue
        q = _class_probabilities(targets, output_shape[0], draw.flip_probability, e)
        root = q.sqrt() * e
        column = root - q * root.sum(1, keepdim=True)
        yield column / math.prod(output_shape[1:])


def gradient_with_slopes(
    model: FlatModel,
    loss: ExampleLoss,
    chunk: Chunk,
    slopes: Tensor,
    n_examples: int,
) -> tuple[Tensor, Tensor]:
    """Return ℓ̃ᵢ and this chunk's part of g₀ + (1/N) Σ Jᵢᵀuᵢ, by one backward pass.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    loss : ExampleLoss
    chunk : Chunk
    slopes : Tensor of shape (n, \\*output_shape)
        uᵢ without the weights of the examples.
    n_examples : int
        N.

    Returns
    -------
    losses : Tensor of shape (n,)
    gradient : Tensor of shape (D,)
    """

    def cotangents(_outputs: Tensor, own: Tensor) -> Tensor:
        return (own + chunk.weigh(slopes)) / n_examples

    return losses_and_pullback(model, loss, chunk, cotangents)


def pulled_back_squares(sums: ExampleSums, chunk: Chunk, slopes: Tensor) -> Tensor:
    """Return ‖Jᵢᵀuᵢ‖² with the weights of the examples.

    Parameters
    ----------
    sums : ExampleSums
    chunk : Chunk
    slopes : Tensor of shape (n, \\*output_shape)
        uᵢ without the weights.

    Returns
    -------
    Tensor of shape (n,)
        In float64.
    """
    scalars = ExampleScalars(chunk.X, (chunk.weigh(slopes),), inner_products)
    return sums.squared_norms(scalars)


def _one_hot(labels: Tensor, n_classes: int, like: Tensor) -> Tensor:
    # F.one_hot waits for the device, to look at the labels.
    shape = (n_classes, *(1 for _ in labels.shape[1:]))
    classes = torch.arange(n_classes, device=labels.device).view(shape)
    return (labels.unsqueeze(1) == classes).to(like.dtype)


def _class_probabilities(
    targets: Tensor, n_classes: int, p: float, like: Tensor
) -> Tensor:
    """Return q, 1 - p for the label and p/(C - 1) for each other class."""
    own = _one_hot(targets, n_classes, like)
    return (1 - p) * own + p / max(1, n_classes - 1) * (1 - own)
