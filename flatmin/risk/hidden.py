"""Differences of outputs that much larger numbers would hide."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.trials import difference

__all__ = ["hidden_difference", "outputs_off"]

# Powers of two that no number has, between small numbers and large ones.
_GAP = 10
_BIAS = 1100  # makes powers of float64 positive


def outputs_off(found: Tensor, right: Tensor, loss: ExampleLoss, y: Tensor) -> float:
    """Return how far outputs are from those that are right, relative to their size.

    Parameters
    ----------
    found : Tensor of shape (n, ...)
    right : Tensor of shape (n, ...)
    loss : ExampleLoss
    y : Tensor of shape (n, ...)

    Returns
    -------
    float
        ‖found - right‖ / ‖right‖, or :func:`hidden_difference` where that is more.
    """
    hidden = hidden_difference(found, right, loss, y)
    return max(difference(found, right), hidden)


def hidden_difference(
    found: Tensor, right: Tensor, loss: ExampleLoss, y: Tensor
) -> float:
    """Return how far outputs differ beside much larger ones, as far as the loss sees.

    Logits that a mask sets to -1e9 make every other logit small. Where the magnitudes
    of the outputs leave a gap, those on each side are compared by themselves. Small
    ones may be what rounding leaves of the large ones: they count no more than the
    losses, or their slopes in the outputs, differ.

    Parameters
    ----------
    found : Tensor of shape (n, ...)
    right : Tensor of shape (n, ...)
    loss : ExampleLoss
    y : Tensor of shape (n, ...)

    Returns
    -------
    float
        0 where there is no gap.
    """
    groups = _groups(right)
    if groups is None or found.shape != right.shape:
        return 0.0
    off = max(
        difference(found[groups == k], right[groups == k])
        for k in range(int(groups.max()) + 1)
    )
    if not off:
        return off
    ours, theirs = (_losses_and_slopes(loss, outputs, y) for outputs in (found, right))
    return min(off, max(map(difference, ours, theirs)))


def _groups(values: Tensor) -> Tensor | None:
    """Return the group of each number, the smallest ones first; None for one group."""
    # A few numbers at a time: outputs of a language model take gigabytes.
    parts = map(_exponents, values.flatten().split(1 << 18))
    counts = torch.stack([part.bincount(minlength=2 * _BIAS) for part in parts]).sum(0)
    taken = counts[1:].nonzero().flatten() + 1  # without the zeros
    starts = taken[1:][taken.diff() > _GAP]
    return (
        torch.bucketize(_exponents(values), starts, right=True) if len(starts) else None
    )


def _exponents(values: Tensor) -> Tensor:
    """Return the powers of two that bound numbers, from 1; 0 of 0, and of infinity."""
    finite = values.nan_to_num(0.0, 0.0, 0.0).double()
    return torch.where(finite == 0, 0, finite.frexp().exponent + _BIAS)


@torch.enable_grad()
def _losses_and_slopes(
    loss: ExampleLoss, outputs: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = outputs.detach().clone().requires_grad_()
    losses = loss.per_example(leaf, y)
    if not losses.requires_grad:
        return losses, torch.zeros_like(leaf)
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]
