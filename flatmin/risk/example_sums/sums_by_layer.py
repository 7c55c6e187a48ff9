"""Sums of per-example gradients and of their squares, without all rows.

One backward pass to the outputs of the functions that take parameters, then products
parameter by parameter.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flatmin.risk.example_sums.moments import Moments
from flatmin.risk.example_sums.parameter_sums import ParameterSums
from flatmin.risk.example_sums.parameter_uses import Recording, record_uses
from flatmin.risk.example_sums.scalars import ExampleScalars
from flatmin.risk.network.model import FlatModel

__all__ = ["SumsByLayer"]


class SumsByLayer:
    """The sums over the examples of one chunk.

    Parameters
    ----------
    model : FlatModel
        Bound to θ.
    recording : Recording

    Attributes
    ----------
    values : Tensor of shape (n,)
        Of the scalar.
    n : int
    parts : list of ParameterSums
        In the order of θ.
    signature : list of str
        See :class:`~flatmin.risk.example_sums.parameter_watch.ParameterWatch`.
    """

    def __init__(self, model: FlatModel, recording: Recording) -> None:
        self.values, self.signature = recording.values, recording.signature
        self.n = n = len(self.values)
        self.parts = [
            ParameterSums(parameter, recording.uses.get(id(parameter), []), n)
            for parameter in model.params
        ]

    @classmethod
    def of(cls, model: FlatModel, *several: ExampleScalars) -> Iterator[SumsByLayer]:
        """Yield the sums of each kind of scalar of the same examples.

        Parameters
        ----------
        model : FlatModel
            Bound to θ.
        *several : ExampleScalars

        Yields
        ------
        SumsByLayer

        Raises
        ------
        UnsupportedLayers
            If a parameter is used by a function whose rows are not known.
        """
        for recording in record_uses(model, several):
            yield cls(model, recording)

    def squared_norms(self) -> Tensor:
        """Return ‖gᵢ‖².

        Returns
        -------
        Tensor of shape (n,)
            In float64.
        """
        return torch.stack([part.squared_norms() for part in self.parts]).sum(0)

    def moments(self) -> Moments:
        """Return mean and spread of the gᵢ.

        Returns
        -------
        Moments
        """
        value = self.values.mean(dtype=torch.float64)
        sizes = [part.parameter.numel() for part in self.parts]
        # Written in place: of a large network they are held once.
        mean, squares = value.new_empty(2, sum(sizes))
        places = zip(self.parts, mean.split(sizes), squares.split(sizes), strict=True)
        for part, its_mean, its_squares in places:
            for place, found in zip(
                (its_mean, its_squares), part.moments(), strict=True
            ):
                place.copy_(found)
        return Moments(self.n, value, mean, squares)

    def batch_sums(self, m: int) -> Tensor:
        """Return the sums of m gᵢ each, in order; m divides n.

        Parameters
        ----------
        m : int

        Returns
        -------
        Tensor of shape (n / m, D)
        """
        return torch.cat([part.batch_sums(m) for part in self.parts], 1)
