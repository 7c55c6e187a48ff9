"""What parameters were applied to, and the gradient of a scalar in what came out.

The gradient of an example in a parameter is a product of these two, so sums over
examples need no per-example backward pass. The gradient is taken at the *edge* of the
output in autograd's graph: the output tensor itself may be overwritten by an activation
that works in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flatmin.risk.layer_rows import Rows
from flatmin.risk.model import FlatModel
from flatmin.risk.parameter_watch import ParameterWatch
from flatmin.risk.unsupported import UnsupportedLayers

__all__ = ["ParameterUse", "Recording", "record_uses"]


@dataclass(frozen=True)
class ParameterUse:
    """One use of one parameter on n examples."""

    rows: Rows
    input: Tensor  # (n, ...)
    slope: Tensor  # (n, ...) gradient of the scalar in the output

    def part(self, start: int, stop: int) -> Tensor:
        """Return the rows of examples ``start`` to ``stop``, shape (n, P)."""
        return self.rows.of(self.input[start:stop], self.slope[start:stop])

    def part_of_batches(self, start: int, stop: int, m: int) -> Tensor:
        """Return the sums of the rows of m examples each, shape (n / m, P)."""
        if self.rows.of_batches is not None:
            return self.rows.of_batches(
                self.input[start:stop], self.slope[start:stop], m
            )
        rows = self.part(start, stop)
        return rows.view(-1, m, rows.shape[1]).sum(1)

    @property
    def n_numbers(self) -> int:
        """How many numbers of one example go into its row."""
        slope, given = self.slope[0], self.input[0]
        if self.rows.patch_size:
            return slope.numel() + slope[0].numel() * self.rows.patch_size
        return slope.numel() + given.numel()

    @property
    def is_outer(self) -> bool:
        """Whether a row is the outer product of an example's slope and input."""
        return self.rows.is_outer and self.input.ndim == 2


@dataclass(frozen=True)
class Recording:
    """What one run of a network tells."""

    values: Tensor  # (n,) of the scalar
    uses: dict[int, list[ParameterUse]]  # by the parameter's id
    trail: list[str]  # the functions that parameters were used in


@torch.enable_grad()
def record_uses(
    model: FlatModel, X: Tensor, scalar: Callable[[Tensor], Tensor]
) -> Recording:
    """Run the network forward and back to where its parameters are used.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    X : Tensor of shape (n, ...)
    scalar : callable
        Maps the outputs, shape (n, ...), to one number an example, shape (n,).

    Returns
    -------
    Recording

    Raises
    ------
    UnsupportedLayers
        If a parameter is used by a function whose rows are not known, or not on a
        tensor with the examples first.
    """
    watch = ParameterWatch(model, len(X))
    with watch:
        outputs = model(X)
    values = scalar(outputs)
    recording = Recording(values.detach(), {}, watch.trail)
    if not watch.calls or not values.requires_grad:
        return recording
    edges = [edge for _, edge in watch.calls]
    slopes = torch.autograd.grad(values.sum(), edges, allow_unused=True)
    for ((given, used), _), slope in zip(watch.calls, slopes, strict=True):
        for tensor, its_rows in used if slope is not None else ():
            for parameter, rows in _rows_of_parameters(tensor, its_rows, model.params):
                use = ParameterUse(rows, given, slope)
                recording.uses.setdefault(id(parameter), []).append(use)
    return recording


def _rows_of_parameters(
    used: Tensor | None, rows: Rows, parameters: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Rows]]:
    """Yield the parameters that a tensor is made of, and their rows."""
    if used is None or not used.requires_grad:
        return
    if any(used is parameter for parameter in parameters):
        yield used, rows
        return
    found = _pull(used, parameters, torch.ones_like(used))
    for parameter, gradient in zip(parameters, found, strict=True):
        if gradient is not None:
            yield parameter, Rows(partial(_pulled_rows, used, rows, parameter))


def _pulled_rows(
    used: Tensor, rows: Rows, parameter: Tensor, input: Tensor, slope: Tensor
) -> Tensor:
    """Return the rows of a parameter from those of a function of it."""
    above = rows.restore(rows.of(input, slope)).reshape(-1, *used.shape)
    (below,) = _pull(used, [parameter], above, is_grads_batched=True)
    return below.reshape(len(above), -1)


def _pull(
    used: Tensor, parameters: Sequence[Tensor], cotangents: Tensor, **options: bool
) -> tuple[Tensor, ...]:
    options = {"retain_graph": True, "allow_unused": True, **options}
    try:
        return torch.autograd.grad(used, parameters, cotangents, **options)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # without a rule for batches
        raise UnsupportedLayers(f"a function of parameters: {error}") from error
