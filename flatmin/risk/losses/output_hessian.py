"""The Hessian of a loss in the output, one product at a time.

It is block diagonal over examples, so one product serves all of them, and never more is
held than a few numbers an output. Its square root needs the matrix itself: in blocks,
where the loss of an example splits into parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from flatmin._utils.columns import as_column
from flatmin._utils.messages import first_line
from flatmin.risk.autodiff.differences import (
    DIFFERENCE_LIMITS,
    STEPS,
    half_jump,
    same_at_both,
)
from flatmin.risk.autodiff.held_constants import HeldConstants
from flatmin.risk.autodiff.kernels import twice_differentiable
from flatmin.risk.trials import random_like, tolerance

__all__ = ["OutputHessian", "check_second_derivative", "root_product"]

_ROUNDINGS = 10  # that a difference of rounded slopes may be off by
_LARGEST_BLOCK = 1024  # an eigendecomposition of more takes seconds an example
_BUDGET = 1 << 24  # numbers in blocks at a time

Losses = Callable[[Tensor], Tensor]  # outputs (n, ...) to one loss an example (n,)


class OutputHessian:
    """Hᵢ = ∂²ℓᵢ/∂f² of n examples, as an operator on numbers of the outputs' shape.

    Parameters
    ----------
    losses : callable
        Outputs of shape (n, \\*output_shape) to (n,), each example by itself.
    outputs : Tensor of shape (n, \\*output_shape)
    name : str
        Of the loss, for messages.
    """

    def __init__(self, losses: Losses, outputs: Tensor, name: str) -> None:
        self.name = name
        self.slopes, self._leaf = _slopes(losses, outputs, twice=True)

    def product(self, u: Tensor) -> Tensor:
        """Return Hᵢuᵢ.

        Parameters
        ----------
        u : Tensor of shape (n, \\*output_shape)

        Returns
        -------
        Tensor of shape (n, \\*output_shape)

        Raises
        ------
        ValueError
            If PyTorch has no second derivative of the loss.
        OutOfMemoryError
            As it comes.
        """
        if not self.slopes.requires_grad:  # linear in the outputs
            return torch.zeros_like(u)
        try:
            with twice_differentiable(_NO_LAYERS):
                (product,) = torch.autograd.grad(
                    self.slopes,
                    self._leaf,
                    u,
                    retain_graph=True,
                    materialize_grads=True,
                )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(_not_there(self.name, first_line(error))) from error
        return product.detach()


def check_second_derivative(losses: Losses, outputs: Tensor, name: str) -> None:
    """Compare Hᵢuᵢ with differences of the gradient in the outputs.

    A function with a backward pass of its own can have a second derivative that is
    wrong without an error.

    Parameters
    ----------
    losses : callable
        As for :class:`OutputHessian`.
    outputs : Tensor of shape (n, \\*output_shape)
        Best in float64.
    name : str

    Raises
    ------
    ValueError
        If they differ by the same at two steps; at a kink they do not.
    """
    u = random_like(outputs, 0)
    found = OutputHessian(losses, outputs, name).product(u)
    is_wrong = _differs(losses, outputs, u, found)
    if is_wrong:
        constants = HeldConstants()  # what the loss detaches is held
        with constants, torch.enable_grad():
            losses(outputs.detach().requires_grad_())
        if constants.n_held:
            is_wrong = _differs(partial(_within, constants, losses), outputs, u, found)
    if is_wrong:
        raise ValueError(
            _not_there(name, "PyTorch's differs from differences of the gradient")
        )


def _within(context: HeldConstants, losses: Losses, outputs: Tensor) -> Tensor:
    with context:
        return losses(outputs)


def _differs(losses: Losses, outputs: Tensor, u: Tensor, found: Tensor) -> bool:
    """Return whether Hᵢuᵢ is off by the same at two steps; at a kink it is not."""
    slopes = _slopes(losses, outputs)[0].detach()
    size = _norms(outputs).where(_norms(outputs) > 0, 1) / _norms(u)
    off = []
    for step in STEPS[outputs.dtype]:
        h = as_column(step * size, u)
        ahead, behind = (_slopes(losses, outputs + s * h * u)[0] for s in (1, -1))
        left = ((ahead - behind) / (2 * h) - found).abs()
        off.append(_norms((left - half_jump(ahead, slopes, behind, h)).clamp(min=0)))
    wide, narrow = off
    # Below the second term differences of rounded slopes are off by themselves.
    scale = _norms(found) + narrow + 1e-3 * _norms(slopes) / size
    # Slopes are differences of numbers of order one, such as p - y: of an example that
    # is fitted they are a few roundings, which do not change from step to step.
    h = STEPS[outputs.dtype][0] * size
    rounding = _ROUNDINGS * torch.finfo(outputs.dtype).eps / h
    is_off = narrow > DIFFERENCE_LIMITS[outputs.dtype] * scale + rounding
    return bool((same_at_both(wide, narrow) & is_off).any())


def root_product(
    per_example: Callable[[Tensor, Tensor], Tensor],
    outputs: Tensor,
    targets: Tensor,
    z: Tensor,
    name: str,
) -> Tensor:
    """Return Sᵢzᵢ, S = V√Λ of Hᵢ = VΛVᵀ, by the smallest blocks that H splits into.

    Parameters
    ----------
    per_example : callable
        Outputs and targets to one loss an example.
    outputs : Tensor of shape (n, \\*output_shape)
    targets : Tensor of shape (n, ...)
    z : Tensor of shape (n, \\*output_shape)
    name : str

    Returns
    -------
    Tensor of shape (n, \\*output_shape)

    Raises
    ------
    ValueError
        If the loss is not convex in the output, the blocks are too large, or PyTorch
        has no second derivative of the loss.
    """
    numbers = outputs.shape[1:].numel()
    for split in _splits(outputs.shape[1:]):
        if split.size > _LARGEST_BLOCK:
            continue
        rows = max(1, _BUDGET // (numbers * split.size))
        products = []
        for f, y, some in zip(
            outputs.split(rows), targets.split(rows), z.split(rows), strict=True
        ):
            hessian = OutputHessian(partial(_swapped, per_example, y), f, name)
            product = _by_blocks(hessian, f, some, split)
            if product is None:
                break
            products.append(product)
        else:
            return torch.cat(products)
    raise ValueError(
        f"The square root of the Gauss-Newton matrix takes the Hessian of {name} in "
        f"the {numbers} outputs of an example, in blocks of at most {_LARGEST_BLOCK}. "
        "It does not split into such blocks; products with the Gauss-Newton matrix are "
        "there. Use method='gld_full' or 'gld_hessian', or cross-entropy or squared "
        "error, whose roots are known."
    )


def _swapped(
    per_example: Callable[[Tensor, Tensor], Tensor], targets: Tensor, outputs: Tensor
) -> Tensor:
    return per_example(outputs, targets)


@dataclass(frozen=True)
class _Split:
    """Outputs (n, ...) seen as (n, parts, size), and back."""

    size: int
    into: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


def _splits(shape: torch.Size) -> Iterator[_Split]:
    """Yield ways to split an example's outputs, the smallest blocks first."""

    def back(t: Tensor) -> Tensor:
        return t.reshape(-1, *shape)

    yield _Split(1, lambda t: t.reshape(len(t), -1, 1), back)
    if len(shape) > 1:
        first_last = (*shape[1:], shape[0])
        yield _Split(  # (C, positions)
            shape[0],
            lambda t: t.movedim(1, -1).reshape(len(t), -1, shape[0]),
            lambda t: t.reshape(-1, *first_last).movedim(-1, 1),
        )
        yield _Split(shape[-1], lambda t: t.reshape(len(t), -1, shape[-1]), back)
    yield _Split(shape.numel(), lambda t: t.reshape(len(t), 1, -1), back)


def _by_blocks(
    hessian: OutputHessian, outputs: Tensor, z: Tensor, split: _Split
) -> Tensor | None:
    """Return Sᵢzᵢ, or None if Hᵢ has entries outside these blocks."""
    u = random_like(outputs, 0)
    expected = hessian.product(u)
    if not bool(expected.isfinite().all()):
        raise ValueError(
            f"The Hessian of {hessian.name} in the outputs must be finite. Got NaN or "
            "infinity; look at the outputs, and for logarithms and roots of 0."
        )
    if not bool(expected.any()):
        return torch.zeros_like(z)
    columns = []
    for i in range(split.size):
        unit = torch.zeros_like(split.into(u))
        unit[..., i] = 1
        columns.append(split.into(hessian.product(split.back(unit))))
    blocks = torch.stack(columns, -1)  # (n, parts, size, size)
    along = split.back((blocks @ split.into(u).unsqueeze(-1)).squeeze(-1))
    eps = torch.finfo(outputs.dtype).eps
    limit = tolerance(outputs.dtype, 2) * _norms(expected)
    if split.size == outputs.shape[1:].numel():
        # One block is always right, up to the rounding of p - y; smaller ones may lack
        # what is hidden in it.
        limit = limit + 100 * eps * _norms(u)
    if not bool((_norms(along - expected) <= limit).all()):
        return None
    roots = _square_roots(blocks, outputs.dtype, hessian.name).to(z.dtype)
    return split.back((roots @ split.into(z).unsqueeze(-1)).squeeze(-1))


def _slopes(
    losses: Losses, outputs: Tensor, *, twice: bool = False
) -> tuple[Tensor, Tensor]:
    """Return ∂ℓᵢ/∂f and the copy of the outputs that it is differentiated in."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad(), twice_differentiable(_NO_LAYERS):
        total = losses(leaf).sum()
        (slopes,) = torch.autograd.grad(
            total, leaf, create_graph=twice, materialize_grads=True
        )
    return slopes, leaf


def _square_roots(blocks: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    values, vectors = torch.linalg.eigh(blocks.double())
    lowest = values[..., 0]
    # A loss of order one is rounded by a few eps. A confident prediction can make the
    # Hessian smaller than that, so the limit has an absolute part.
    rounding = 100 * torch.finfo(dtype).eps
    tolerated = 1e-5 * values.abs().amax((1, 2)) + rounding
    if bool((lowest < -tolerated.unsqueeze(1)).any()):
        raise ValueError(
            f"The Gauss-Newton matrix needs a loss that is convex in the output. "
            f"The Hessian of {name} in the output has the eigenvalue "
            f"{float(lowest.min()):.3g}; use method='gld_full' or 'gld_hessian'."
        )
    roots: Tensor = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return roots


def _not_there(name: str, reason: str) -> str:
    return (
        f"The Gauss-Newton matrix needs the second derivative of {name} in the "
        f"outputs, which is not there: {reason}. What takes first derivatives only "
        "works: the gradient, Σ and its laws, such as method='gld_full'; or pass a "
        "loss that is made of differentiable functions."
    )


def _norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1)
    return norms


_NO_LAYERS = nn.Identity()
