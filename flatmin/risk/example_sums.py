"""Per-example gradients and sums over them, by the faster of two kernels.

By layer where the rows of every function that takes a parameter are known, else from
the rows of ``vmap``. A trial on a few examples decides; a later chunk can overrule it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from flatmin.risk.example_scalars import ExampleScalars
from flatmin.risk.layer_sums import LayerSums
from flatmin.risk.model import FlatModel
from flatmin.risk.moments import Moments, mean_and_squares, merge_moments
from flatmin.risk.per_example import values_and_gradients
from flatmin.risk.unsupported import UnsupportedLayers

__all__ = ["ExampleSums"]

T = TypeVar("T")

_N_TRIED = 3


class ExampleSums:
    """The two kernels of one risk, and which of them it uses.

    Parameters
    ----------
    model : FlatModel
    row_chunk_size : int
        Examples whose rows are held at a time on the plain path.

    Attributes
    ----------
    path : str or None
        "by layer", or why it is "plain"; None before the first sum.
    """

    def __init__(self, model: FlatModel, row_chunk_size: int) -> None:
        self.model = model
        self.row_chunk_size = row_chunk_size
        self.path: str | None = None
        self._n_tried = 0
        self._trail: list[str] = []

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
        norms = self._by_layer(examples, LayerSums.squared_norms)
        if norms is not None:
            return norms
        return torch.cat([_norms(rows) for _, rows in self._values_and_rows(examples)])

    def moments(self, examples: ExampleScalars) -> Moments:
        """Return the mean of scalarᵢ, and mean and spread of its ∇, at the bound θ.

        Parameters
        ----------
        examples : ExampleScalars

        Returns
        -------
        Moments
        """
        moments = self._by_layer(examples, LayerSums.moments)
        if moments is not None:
            return moments
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
        return self._by_layer(examples, lambda sums: sums.batch_sums(m))

    def rows(self, examples: ExampleScalars) -> Tensor:
        """Return ∇ scalarᵢ at the bound θ.

        Parameters
        ----------
        examples : ExampleScalars

        Returns
        -------
        Tensor of shape (n, D)
        """
        rows = self._by_layer(examples, lambda sums: sums.batch_sums(1))
        if rows is not None:
            return rows
        return torch.cat([rows for _, rows in self._values_and_rows(examples)])

    def _by_layer(
        self,
        examples: ExampleScalars,
        quantity: Callable[[LayerSums], T],
    ) -> T | None:
        """Return a quantity layer by layer, or None where another path is taken."""
        try:
            # A trial on one example proves nothing: again where there are more.
            if self.path is None or self._n_tried == 1 < len(examples):
                self.path = self._try(examples)
            if self.path != "by layer":
                return None
            sums = LayerSums(self.model, examples)
            # On other examples than the trial's; one has a first dimension of one.
            if len(examples) > 1 and sums.trail != self._trail:
                raise UnsupportedLayers("a path that depends on the examples")
            return quantity(sums)
        except torch.OutOfMemoryError:
            raise
        except UnsupportedLayers as reason:
            self.path = f"plain: {reason}"
        except Exception as error:  # the module's own comes again
            self.path = f"plain: {type(error).__name__} layer by layer"
        return None

    def _try(self, examples: ExampleScalars) -> str | None:
        """Return the path to take, or None where the gradients do not tell."""
        few = self._telling(examples)
        if len(few) < min(2, len(examples)):
            return None
        self._n_tried = len(few)
        # Of the parameters: tokens are integers.
        single = self.model.params[0].dtype == torch.float32
        # Backwards too: a module that sorts its examples mixes up one of the two.
        for order in (few, few.flip(0)):
            error = self._difference(examples[order])
            if not error <= (1e-4 if single else 1e-9):
                return f"plain: layer by layer is off by {error:.1e}"
        return "by layer"

    def _telling(self, examples: ExampleScalars) -> Tensor:
        """Return where up to three examples are whose gradient is not 0."""
        # At a weight of 0 it is, and would agree with anything.
        for n in (_N_TRIED, len(examples)):
            sums = LayerSums(self.model, examples[:n])
            few = sums.squared_norms().nonzero().flatten()[:_N_TRIED]
            if len(few) == _N_TRIED:
                break
        return few

    def _difference(self, examples: ExampleScalars) -> float:
        """Return by how much the two kernels differ, relative to the squares."""
        sums = LayerSums(self.model, examples)
        self._trail = sums.trail
        rows = torch.cat([rows for _, rows in self._values_and_rows(examples)])
        norms, moments = sums.squared_norms(), sums.moments()
        mean, squares = mean_and_squares(rows)
        parts = (
            rows.double().square().sum(0),
            (moments.squares - squares).abs(),
            (moments.mean - mean).square() * len(examples),
        )
        size, *errors = (self._by_parameter(part) for part in parts)
        total = size.sum()
        largest = torch.stack(errors).amax(0)
        whole = torch.maximum(largest.sum(), (norms - _norms(rows)).abs().sum()) / total
        # A small parameter that is missing is off by 1, which the sum would hide. It
        # may round 100 times worse than the whole; below 1e-7 of that it is rounding.
        worst = (largest / (size + 1e-7 * total)).max() / 100
        return float(torch.maximum(whole, worst))

    def _by_parameter(self, coordinates: Tensor) -> Tensor:
        """Return the sums over the coordinates of each parameter."""
        sizes = [parameter.numel() for parameter in self.model.params]
        return torch.stack([part.sum() for part in coordinates.split(sizes)])

    def _values_and_rows(
        self, examples: ExampleScalars
    ) -> Iterator[tuple[Tensor, Tensor]]:
        theta = self.model.values()
        for start in range(0, len(examples), self.row_chunk_size):
            part = examples[start : start + self.row_chunk_size]
            yield values_and_gradients(self.model, theta, part)


def _moments(values: Tensor, rows: Tensor) -> Moments:
    value = values.mean(dtype=torch.float64)
    return Moments(len(rows), value, *mean_and_squares(rows))


def _norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.square()
