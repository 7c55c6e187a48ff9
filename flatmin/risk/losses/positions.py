"""Functions of outputs at many positions, a slice of the positions at a time.

The logits of a language model, n T V numbers, are the largest array that there is, and
a loss that is written down makes several like it. What acts on each position by itself
is computed here by slices that stay within the caches of a CPU: of the size of the
outputs are then the outputs and the result alone. Slopes are computed when they are
needed, from the outputs, and so is the second derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

__all__ = ["losses_by_position", "product_by_position"]

# Numbers in outputs that are worth slices, and in a slice.
_LARGE, _SLICE = 1 << 22, 1 << 18

_Losses = Callable[[Tensor, Tensor], Tensor]
_Place = tuple[slice, ...]  # of the outputs: examples, classes, positions


def losses_by_position(losses: _Losses, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return one loss a position.

    Parameters
    ----------
    losses : callable
        Outputs of shape (n, C, \\*positions) and targets to (n, \\*positions), each
        position by itself.
    outputs : Tensor of shape (n, C, \\*positions)
        May have more positions along their first axis than the targets: the last ones
        are of no effect.
    targets : Tensor of shape (n, \\*positions) or (n, C, \\*positions)

    Returns
    -------
    Tensor of shape (n, \\*positions)
    """
    if not _worth_slices(outputs):
        return losses(_trimmed(outputs, targets), targets)
    apply: Any = _SlicedLosses.apply
    found: Tensor = apply(outputs, targets, losses)
    return found


def product_by_position(
    product: Callable[..., Tensor], outputs: Tensor, targets: Tensor, *others: Tensor
) -> Tensor:
    """Return numbers of the outputs' shape that depend on those at their position.

    Parameters
    ----------
    product : callable
        Slices of the outputs and the others, to one of the outputs' shape.
    outputs : Tensor of shape (n, C, \\*positions)
        May have more positions than the targets: there the product is 0.
    targets : Tensor of shape (n, \\*positions) or (n, C, \\*positions)
        Only for their positions.
    *others : Tensor of shape (n, C or 1, \\*positions)

    Returns
    -------
    Tensor of shape (n, C, \\*positions)
    """
    shape = _trimmed(outputs, targets).shape
    if not _worth_slices(outputs, *others):
        found = product(*(_first(t, shape) for t in (outputs, *others)))
        return found if shape == outputs.shape else _padded(found, outputs)
    found = torch.zeros_like(outputs)
    for place in _places(shape):
        found[place] = product(outputs[place], *(other[place] for other in others))
    return found


class _SlicedLosses(torch.autograd.Function):
    """Losses whose graph holds the outputs and nothing else of their size."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, losses: _Losses) -> Tensor:
        ctx.save_for_backward(outputs, targets)
        ctx.losses = losses
        parts: list[Tensor] = []
        places = list(_places(_trimmed(outputs, targets).shape))
        for place in places:
            parts.append(losses(outputs[place], _at(targets, place, outputs)))
        shape = _without_classes(_trimmed(outputs, targets).shape)
        found = parts[0].new_empty(shape)
        for place, part in zip(places, parts, strict=True):
            found[_without_classes(place)] = part
        return found

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        outputs, targets = ctx.saved_tensors
        apply: Any = _SlicedSlopes.apply
        return apply(outputs, targets, *cotangents, ctx.losses), None, None


class _SlicedSlopes(torch.autograd.Function):
    """The slopes of the losses in the outputs, which are linear in the cotangents."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, targets: Tensor, cotangents: Tensor, losses: _Losses
    ) -> Tensor:
        ctx.save_for_backward(outputs, targets, cotangents)
        ctx.losses = losses
        found = torch.zeros_like(outputs)
        for place in _places(_trimmed(outputs, targets).shape):
            some = _at(targets, place, outputs), cotangents[_without_classes(place)]
            found[place] = _slopes(losses, _leaf(outputs[place]), *some)
        return found

    @staticmethod
    def backward(ctx: Any, *several: Tensor) -> Any:
        (u,) = several
        outputs, targets, cotangents = ctx.saved_tensors
        if torch.is_grad_enabled() or not _worth_slices(u):  # to be differentiated on
            f, c = (t if t.requires_grad else _leaf(t) for t in (outputs, cotangents))
            y = targets
            return *_twice(ctx.losses, f, y, c, u, create_graph=True), None
        along, across = torch.zeros_like(outputs), torch.zeros_like(cotangents)
        for place in _places(_trimmed(outputs, targets).shape):
            f, c = _leaf(outputs[place]), _leaf(cotangents[_without_classes(place)])
            y = _at(targets, place, outputs)
            parts = _twice(ctx.losses, f, y, c, u[place])
            along[place], _, across[_without_classes(place)] = parts
        return along, None, across, None


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


@torch.enable_grad()
def _slopes(
    losses: _Losses, f: Tensor, y: Tensor, c: Tensor, *, create_graph: bool = False
) -> Tensor:
    found = losses(_trimmed(f, y), y)
    (slopes,) = torch.autograd.grad(
        found, f, c, create_graph=create_graph, materialize_grads=True
    )
    return slopes


@torch.enable_grad()
def _twice(
    losses: _Losses, f: Tensor, y: Tensor, c: Tensor, u: Tensor, **options: bool
) -> tuple[Tensor, None, Tensor]:
    """Return the derivatives of uᵀ(slopes) in the outputs and in the cotangents."""
    slopes = _slopes(losses, f, y, c, create_graph=True)
    in_f, in_c = torch.autograd.grad(
        slopes, (f, c), u, materialize_grads=True, **options
    )
    return in_f, None, in_c


def _worth_slices(*tensors: Tensor) -> bool:
    """Say whether tensors are large, and plain: no transform has rules for slices."""
    plain = not peek_interpreter_stack() and forward_ad._current_level < 0
    return tensors[0].numel() >= _LARGE and plain


def _places(shape: torch.Size) -> Iterator[_Place]:
    """Yield slices of shape (n, C, *positions), some examples or positions each."""
    n, whole, example = shape[0], [slice(0, size) for size in shape[1:]], shape[1:]
    if example.numel() <= _SLICE or len(shape) == 2:
        step = max(1, _SLICE // max(1, example.numel()))
        for start in range(0, n, step):
            yield slice(start, start + step), *whole
        return
    classes, positions, *rest = whole
    step = max(1, _SLICE * shape[2] // example.numel())
    for i in range(n):
        for start in range(0, positions.stop, step):
            stop = min(start + step, positions.stop)
            yield slice(i, i + 1), classes, slice(start, stop), *rest


def _without_classes(shape: Any) -> Any:
    return (shape[0], *shape[2:])


def _at(targets: Tensor, place: _Place, outputs: Tensor) -> Tensor:
    soft = targets.ndim == outputs.ndim
    return targets[place if soft else _without_classes(place)]


def _trimmed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the outputs at the positions of the targets."""
    positions = targets.shape[targets.ndim - outputs.ndim + 2 :]
    return _first(outputs, torch.Size((*outputs.shape[:2], *positions)))


def _first(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return the positions of a shape, the first ones along their first axis."""
    if tensor.shape[2:] == shape[2:]:
        return tensor
    return tensor[:, :, : shape[2]]


def _padded(product: Tensor, outputs: Tensor) -> Tensor:
    """Return a product with zeros at positions that have none, with classes last."""
    missing = outputs.shape[2] - product.shape[2]
    rows = product.movedim(1, -1)
    zeros = rows.new_zeros(len(rows), missing, *rows.shape[2:])
    return torch.cat([rows, zeros], 1).movedim(-1, 1)
