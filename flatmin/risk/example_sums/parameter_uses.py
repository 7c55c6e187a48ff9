"""What parameters were applied to, and the gradient of a scalar in what came out.

The gradient of an example in a parameter is a product of these two, so sums over
examples need no per-example backward pass. The gradient is taken at the *edge* of the
output in autograd's graph: the output tensor itself may be overwritten by an activation
that works in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flatmin._utils.columns import as_column
from flatmin.risk.example_sums.factors import Factors
from flatmin.risk.example_sums.parameter_watch import ParameterWatch
from flatmin.risk.example_sums.row_rule import RowRule
from flatmin.risk.example_sums.scalars import ExampleScalars
from flatmin.risk.failures import UnsupportedLayers
from flatmin.risk.network.model import FlatModel
from flatmin.risk.trials import difference_and_size, worst_difference

__all__ = ["ParameterUse", "Recording", "record_uses", "slopes_off"]

_MOST_SOURCES = 8  # each is pulled back on its own


@dataclass(frozen=True)
class ParameterUse:
    """One use of one parameter on n examples."""

    rule: RowRule
    input: Tensor  # (n, ...)
    slope: Tensor  # (n, ...) gradient of the scalar in the output

    def part(self, start: int, stop: int, m: int = 1) -> Tensor:
        """Return the sums of the rows of m examples each, shape (n / m, P)."""
        part = slice(start, stop)
        return self.rule.sums(self.input[part], self.slope[part], m)

    def factors(self, start: int, stop: int) -> Factors:
        """Return what some examples' rows are products of."""
        if self.rule.factors is None:
            raise UnsupportedLayers("a function whose rows are no products")
        part = slice(start, stop)
        return self.rule.factors(self.input[part], self.slope[part])

    @property
    def n_numbers(self) -> int:
        """How many numbers of one example go into its row."""
        size = self.slope[0].numel() + self.rule.n_other_numbers
        if self.rule.patch_size:
            n_positions = self.slope[0, 0].numel()
            return size + n_positions * self.rule.patch_size
        return size + self.input[0].numel()

    @property
    def is_outer(self) -> bool:
        """Whether a row is the outer product of an example's slope and input."""
        is_product = self.rule.factors is not None and not self.rule.nonzero_blocks
        return is_product and self.input.ndim == 2


@dataclass(frozen=True)
class Recording:
    """What one run back through a network tells."""

    values: Tensor  # (n,) of the scalar
    uses: dict[int, list[ParameterUse]]  # by the parameter's id
    signature: list[str]  # see ParameterWatch


def record_uses(
    model: FlatModel, several: Sequence[ExampleScalars]
) -> Iterator[Recording]:
    """Run the network forward, and for each kind of scalar back to its parameters.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    several : sequence of ExampleScalars
        Of the same examples, which are run once.

    Yields
    ------
    Recording

    Raises
    ------
    UnsupportedLayers
        If a parameter is used by a function whose rows are not known, or not on a
        tensor with the examples first.
    """
    with torch.enable_grad():
        watch, outputs = _watched(model, several[0])
        sources = _Sources(model.params)
        parts = [
            [found for part in call.rules for found in sources.of(*part)]
            for call in watch.calls
        ]
        values = [examples.of(outputs) for examples in several]
    # Calls took aliases: a parameter has a gradient of its own where no call was seen.
    inputs: list[Any] = [*(call.edge for call in watch.calls), *model.params]
    for i, value in enumerate(values):
        if not value.requires_grad:
            raise UnsupportedLayers("examples whose loss depends on no parameter")
        slopes = torch.autograd.grad(
            value.sum(), inputs, allow_unused=True, retain_graph=i < len(values) - 1
        )
        yield _recording(watch, parts, slopes, value.detach())


@torch.enable_grad()
def slopes_off(model: FlatModel, examples: ExampleScalars) -> tuple[float, list[str]]:
    """Return how far a slope at an example's place is from that of its own scalar.

    With weights on the scalars each place must have its own example's. So it is seen
    when a network works on the examples in another order than theirs.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    examples : ExampleScalars

    Returns
    -------
    off : float
        Relative, as :func:`flatmin.risk.trials.difference` is.
    signature : list of str
        See :class:`ParameterWatch`.
    """
    watch, outputs = _watched(model, examples)
    values = examples.of(outputs)
    edges = [call.edge for call in watch.calls]
    if not (edges and values.requires_grad):
        return 0.0, watch.signature
    weights = torch.rand(len(values), generator=torch.Generator().manual_seed(0)) + 1
    weights = weights.to(values)
    options: dict[str, Any] = {"allow_unused": True}
    plain = torch.autograd.grad(values.sum(), edges, retain_graph=True, **options)
    weighted = torch.autograd.grad(values, edges, weights, **options)
    parts = []
    for call, found, slope in zip(watch.calls, weighted, plain, strict=True):
        if found is not None and slope is not None:
            slope = slope.reshape(call.shape)
            right = slope * as_column(weights, slope)
            parts.append(difference_and_size(found.reshape(call.shape), right))
    return max(worst_difference(parts)) if parts else 0.0, watch.signature


def _watched(
    model: FlatModel, examples: ExampleScalars
) -> tuple[ParameterWatch, Tensor]:
    """Return what a run of the network showed, and the outputs."""
    watch = ParameterWatch(model, len(examples))
    with watch:
        outputs = model(examples.X)
    return watch, outputs


def _recording(
    watch: ParameterWatch,
    parts: list[list[tuple[Tensor, RowRule]]],
    slopes: Sequence[Tensor | None],
    values: Tensor,
) -> Recording:
    recording = Recording(values, {}, watch.signature)
    if any(slope is not None for slope in slopes[len(watch.calls) :]):
        raise UnsupportedLayers("a parameter that is used out of sight")
    for call, part, slope in zip(watch.calls, parts, slopes, strict=False):
        if slope is None:
            continue
        for parameter, rule in part:
            use = ParameterUse(rule, call.input, slope.reshape(call.shape))
            recording.uses.setdefault(id(parameter), []).append(use)
    return recording


class _Sources:
    """Knows which parameters a tensor is made of."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self._found: dict[int, list[Tensor]] = {id(p): [p] for p in parameters}

    def of(self, used: Tensor, rule: RowRule) -> list[tuple[Tensor, RowRule]]:
        """Return the parameters and their rows, from those of what is used."""
        if id(used) not in self._found:
            slopes = _pull(used, self.parameters, torch.ones_like(used))
            self._found[id(used)] = [
                parameter
                for parameter, slope in zip(self.parameters, slopes, strict=True)
                if slope is not None
            ]
        found = self._found[id(used)]
        if any(parameter is used for parameter in found):
            return [(used, rule)]
        if len(found) > _MOST_SOURCES:
            raise UnsupportedLayers(f"a function of {len(found)} parameters")
        return [(parameter, _pulled_back(used, rule, parameter)) for parameter in found]


def _pulled_back(used: Tensor, rule: RowRule, parameter: Tensor) -> RowRule:
    """Return the rows of a parameter from those of a function of it."""

    def batch_sums(input: Tensor, slope: Tensor, m: int) -> Tensor:
        sums = rule.restore(rule.sums(input, slope, m))
        above = sums.reshape(-1, *used.shape)
        (below,) = _pull(used, [parameter], above, is_grads_batched=True)
        return below.reshape(len(above), -1)

    return RowRule(
        partial(batch_sums, m=1),
        batch_sums=batch_sums,
        patch_size=rule.patch_size,
        n_other_numbers=used.numel(),
    )


def _pull(
    used: Tensor, parameters: Sequence[Tensor], cotangents: Tensor, **options: bool
) -> tuple[Tensor, ...]:
    options = {"retain_graph": True, "allow_unused": True, **options}
    return torch.autograd.grad(used, parameters, cotangents, **options)
