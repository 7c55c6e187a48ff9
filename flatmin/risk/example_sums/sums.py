"""Per-example gradients and sums over them, by one of three kernels.

By layer where the rows of every function that takes a parameter are known, else from
the rows of ``vmap``, else one example at a time. A trial on a few examples decides; a
later chunk can overrule it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from flatmin.risk.example_sums.moments import Moments, mean_and_squares, merge_moments
from flatmin.risk.example_sums.parameter_sums import COLUMNS, ParameterSums
from flatmin.risk.example_sums.parameter_uses import slopes_off
from flatmin.risk.example_sums.per_example import looped_rows, vectorised_rows
from flatmin.risk.example_sums.scalars import ExampleScalars
from flatmin.risk.example_sums.sums_by_layer import SumsByLayer
from flatmin.risk.example_sums.trial_points import bound, trial_points
from flatmin.risk.failures import UnsupportedLayers, explain
from flatmin.risk.network.model import FlatModel
from flatmin.risk.trials import (
    Choice,
    difference,
    difference_and_size,
    joined,
    tells,
    tolerance,
    worst,
    worst_difference,
)

__all__ = ["ExampleSums"]

T = TypeVar("T")

# Numbers in the rows of a trial.
_TRIAL_BUDGET = 1 << 24


class ExampleSums:
    """The kernels of one risk, and which of them it uses.

    Parameters
    ----------
    model : FlatModel
    row_chunk_size : int
        Examples whose rows are held at a time on the slower paths.
    examples : callable
        Returns the few examples to try on.
    n_examples : int
        Of the data. Until as many have been worked on by layer, it is tried whether
        each has its own slopes: a network may put some into another order, and the few
        need not be among them.

    Attributes
    ----------
    choice : Choice
        "by layer", "vmap" or "one by one".
    """

    def __init__(
        self,
        model: FlatModel,
        row_chunk_size: int,
        examples: Callable[[], ExampleScalars],
        n_examples: int,
    ) -> None:
        self.model = model
        self.row_chunk_size = row_chunk_size
        self.examples = examples
        self.n_examples = self._n_untried = n_examples
        self.choice = Choice()
        self._signature: list[str] = []

    @property
    def path(self) -> str | None:
        """Which kernel, and why no faster one; None before the first trial."""
        reasons = self.choice.reasons
        if self.choice.taken is None and not reasons:
            return None
        if self.choice.taken == "by layer":
            return "by layer"
        path = f"reference: {reasons['by layer']}"
        if "vmap" in reasons:
            path += f"; one example at a time, since under vmap {reasons['vmap']}"
        return path

    def squared_norms(self, examples: ExampleScalars) -> Tensor:
        """Return ‖∇ scalarᵢ‖² at the bound θ.

        Parameters
        ----------
        examples : ExampleScalars

        Returns
        -------
        Tensor of shape (n,)
            In float64.
        """
        return self.several_squared_norms([examples])[0]

    def several_squared_norms(self, several: Sequence[ExampleScalars]) -> Tensor:
        """Return ‖∇ scalarᵢ‖² of each kind of scalar, by one run of the network.

        Parameters
        ----------
        several : sequence of ExampleScalars
            k kinds, of the same examples.

        Returns
        -------
        Tensor of shape (k, n)
            In float64.
        """
        norms = self._by_layer(several, SumsByLayer.squared_norms)
        if norms is not None:
            return torch.stack(norms)[:, : len(several[0])]
        return torch.stack([self._norms_of_rows(examples) for examples in several])

    def moments(self, examples: ExampleScalars) -> Moments:
        """Return the mean of scalarᵢ, and mean and spread of its ∇, at the bound θ.

        Parameters
        ----------
        examples : ExampleScalars

        Returns
        -------
        Moments
        """
        moments = self._by_layer([examples], SumsByLayer.moments)
        if moments is not None:
            return moments[0]._replace(n=len(examples))
        return merge_moments(
            _moments(*part) for part in self._values_and_rows(examples)
        )

    def batch_sums(
        self,
        examples: ExampleScalars,
        m: int,
    ) -> Tensor | None:
        """Return the sums of m consecutive ∇ scalarᵢ each, at the bound θ.

        Parameters
        ----------
        examples : ExampleScalars
        m : int
            Divides n.

        Returns
        -------
        Tensor of shape (n / m, D), or None
            None where the layers do not tell: a loop over batches is better than rows.
        """
        sums = self._by_layer([examples], lambda sums: sums.batch_sums(m))
        return sums if sums is None else sums[0][: len(examples) // m]

    def rows(self, examples: ExampleScalars) -> Tensor:
        """Return ∇ scalarᵢ at the bound θ.

        Parameters
        ----------
        examples : ExampleScalars

        Returns
        -------
        Tensor of shape (n, D)
        """
        rows = self._by_layer([examples], lambda sums: sums.batch_sums(1))
        if rows is not None:
            return rows[0][: len(examples)]
        return torch.cat([rows for _, rows in self._values_and_rows(examples)])

    def _by_layer(
        self,
        several: Sequence[ExampleScalars],
        quantity: Callable[[SumsByLayer], T],
    ) -> list[T] | None:
        """Return a quantity of each layer by layer, or None for another path."""
        if (self.choice.taken or self._settle()) != "by layer":
            return None
        if len(several[0]) == 1 and self.model.pairs_single:
            # The caller drops the second.
            several = [examples[[0, 0]] for examples in several]
        found = []
        try:
            self._try_order(several[0])
            for sums in SumsByLayer.of(self.model, *several):
                if sums.n > 1:  # one has a first dimension of one
                    self._check_signature(sums.signature)
                found.append(quantity(sums))
            return found
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the module's own comes again
            self.choice.give_up("by layer", explain(error))
        return None

    def _check_signature(self, signature: list[str]) -> None:
        """Raise where other examples than the trial's take another path."""
        if signature != self._signature:
            raise UnsupportedLayers("a path that depends on the examples")

    def _try_order(self, examples: ExampleScalars) -> None:
        """Raise where examples do not have their own slopes."""
        n = len(examples)
        if n == 1 or self._n_untried <= 0:
            return
        # They may lie in the order that the network wants.
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        off, signature = slopes_off(self.model, examples[order])
        self._check_signature(signature)
        if not off <= tolerance(self.model.precision, 1):
            raise UnsupportedLayers("examples in another order than their own")
        self._n_untried -= n

    def _settle(self) -> str | None:
        """Choose on a few examples; None where their gradients tell nothing."""
        examples, n_params = self.examples(), self.model.layout.n_params
        examples = examples[: max(3, _TRIAL_BUDGET // n_params)]
        rows_at: list[tuple[Tensor, Tensor]] = []
        for theta in trial_points(self.model, examples):
            with bound(self.model, theta):
                rows_at.append((theta, looped_rows(self.model, examples)[1]))
        if not any(tells(rows) for _, rows in rows_at):
            return None

        def worst_off(off: Callable[[ExampleScalars, Tensor], float]) -> float:
            found = []
            for theta, rows in rows_at:
                with bound(self.model, theta):
                    found.append(off(examples, rows))
            return worst(found)

        return self.choice.settle(
            {
                "by layer": partial(worst_off, self._layers_off),
                "vmap": partial(worst_off, self._vmap_off),
                "one by one": None,
            },
            tolerance(self.model.precision, 1),
        )

    def _layers_off(self, examples: ExampleScalars, rows: Tensor) -> float:
        """Return how far the sums of layers are from those of the right rows."""
        every = torch.arange(len(rows))
        half = every[len(rows) // 2 :].flip(0)
        found = [self._difference(examples, rows, some) for some in (half, every)]
        return worst(found)

    def _difference(
        self, examples: ExampleScalars, rows: Tensor, some: Tensor
    ) -> float:
        if len(some) == 1 and self.model.pairs_single:
            some = some[[0, 0]]
        (sums,) = SumsByLayer.of(self.model, examples[some])
        self._signature = sums.signature
        # Parameter by parameter: the rows of a large network are held only once.
        norms = torch.zeros(len(some), dtype=torch.float64, device=rows.device)
        parts = []
        own = rows.split(self.model.layout.sizes, 1)
        for part, of_all in zip(sums.parts, own, strict=True):
            norms += part.squared_norms()
            parts.append(_off_by_quantity(part, of_all, some))
        worst = [
            max(worst_difference(quantity)) for quantity in zip(*parts, strict=True)
        ]
        return max(*worst, difference(norms, _norms(rows)[some]) / 2)

    def _vmap_off(self, examples: ExampleScalars, rows: Tensor) -> float:
        _, found = vectorised_rows(self.model, self.model.theta(), examples)
        return difference(found, rows, self.model.layout.sizes)

    def _norms_of_rows(self, examples: ExampleScalars) -> Tensor:
        return torch.cat([_norms(rows) for _, rows in self._values_and_rows(examples)])

    def _values_and_rows(
        self, examples: ExampleScalars
    ) -> Iterator[tuple[Tensor, Tensor]]:
        theta = self.model.theta()
        for start in range(0, len(examples), self.row_chunk_size):
            part = examples[start : start + self.row_chunk_size]
            yield self._rows_of_some(theta, part)

    def _rows_of_some(
        self, theta: Tensor, examples: ExampleScalars
    ) -> tuple[Tensor, Tensor]:
        if (self.choice.taken or self._settle()) == "vmap":
            try:
                return vectorised_rows(self.model, theta, examples)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.choice.give_up("vmap", explain(error))
        return looped_rows(self.model, examples)


def _off_by_quantity(
    part: ParameterSums, rows: Tensor, some: Tensor
) -> tuple[tuple[float, float], ...]:
    """Return how far rows, mean and squares of a parameter are off, and their sizes."""
    # Our rows are held beside the right ones until they are compared. What is made of
    # both is a few columns large.
    columns = rows.split(COLUMNS, 1)
    found = part.batch_sums(1).split(COLUMNS, 1)
    of_rows = [
        difference_and_size(ours, right[some])
        for ours, right in zip(found, columns, strict=True)
    ]
    del found
    means, squares = (of.split(COLUMNS) for of in part.moments())
    of_means, of_squares = [], []
    for mean, square, right in zip(means, squares, columns, strict=True):
        right_mean, right_square = mean_and_squares(right[some])
        of_means.append(difference_and_size(mean, right_mean))
        # Where there is one example, or all are alike, there is no spread.
        ours, its = square + mean.square(), right_square + right_mean.square()
        of_squares.append(difference_and_size(ours, its))
    return tuple(joined(parts) for parts in (of_rows, of_means, of_squares))


def _moments(values: Tensor, rows: Tensor) -> Moments:
    value = values.mean(dtype=torch.float64)
    return Moments(len(rows), value, *mean_and_squares(rows))


def _norms(rows: Tensor) -> Tensor:
    # Not by squared_row_norms, which the norms by layer are made of: these are tried
    # against it.
    norms = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split(COLUMNS, 1):  # of a large network no copy is held
        norms += torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).square()
    return norms
