"""Sums over examples of squared gradients, by the faster of two kernels.

By layer where the rows of all layers are known, else from the rows of ``vmap``. A trial
on a few examples decides: it also finds parameters that are used behind a layer's
back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flatmin.risk.layer_sums import LayerSums
from flatmin.risk.model import FlatModel
from flatmin.risk.moments import Moments, mean_and_squares, merge_moments
from flatmin.risk.per_example import values_and_gradients
from flatmin.risk.unsupported import UnsupportedLayers

__all__ = ["ExampleSums"]

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
        self._trail: list[str] = []

    def squared_norms(
        self, X: Tensor, args: tuple[Tensor, ...], scalar: Callable[..., Tensor]
    ) -> Tensor:
        """Return ‖∇ scalarᵢ‖² at the bound θ.

        Parameters
        ----------
        X : Tensor of shape (n, ...)
        args : tuple of Tensor of shape (n, ...)
            Further per-example arguments of ``scalar``.
        scalar : callable
            Maps outputs ``(n, ...)`` and ``args`` to one number an example, ``(n,)``.

        Returns
        -------
        Tensor of shape (n,)
            In float64.
        """
        sums = self._by_layer(X, args, scalar)
        if sums is not None:
            return sums.squared_norms()
        return torch.cat([_norms(rows) for _, rows in self._rows(X, args, scalar)])

    def moments(
        self, X: Tensor, args: tuple[Tensor, ...], scalar: Callable[..., Tensor]
    ) -> Moments:
        """Return the mean of scalarᵢ, and mean and spread of its ∇, at the bound θ.

        Parameters
        ----------
        X : Tensor of shape (n, ...)
        args : tuple of Tensor of shape (n, ...)
        scalar : callable
            As in :meth:`squared_norms`.

        Returns
        -------
        Moments
        """
        sums = self._by_layer(X, args, scalar)
        if sums is not None:
            return sums.moments()
        return merge_moments(_moments(*part) for part in self._rows(X, args, scalar))

    def batch_sums(
        self,
        X: Tensor,
        args: tuple[Tensor, ...],
        scalar: Callable[..., Tensor],
        m: int,
    ) -> Tensor | None:
        """Return the sums of m consecutive ∇ scalarᵢ each, at the bound θ.

        Parameters
        ----------
        X : Tensor of shape (n, ...)
        args : tuple of Tensor of shape (n, ...)
        scalar : callable
            As in :meth:`squared_norms`.
        m : int
            Divides n.

        Returns
        -------
        Tensor of shape (n / m, D), or None
            None where the layers do not tell: a loop over batches is better than rows.
        """
        sums = self._by_layer(X, args, scalar)
        return None if sums is None else sums.batch_sums(m)

    def rows(
        self, X: Tensor, args: tuple[Tensor, ...], scalar: Callable[..., Tensor]
    ) -> Tensor:
        """Return ∇ scalarᵢ at the bound θ.

        Parameters
        ----------
        X : Tensor of shape (n, ...)
        args : tuple of Tensor of shape (n, ...)
        scalar : callable
            As in :meth:`squared_norms`.

        Returns
        -------
        Tensor of shape (n, D)
        """
        sums = self._by_layer(X, args, scalar)
        if sums is not None:
            return sums.batch_sums(1)
        return torch.cat([rows for _, rows in self._rows(X, args, scalar)])

    def _by_layer(
        self, X: Tensor, args: tuple[Tensor, ...], scalar: Callable[..., Tensor]
    ) -> LayerSums | None:
        if self.path is None:
            self.path = self._try(X, args, scalar)
        if self.path != "by layer":
            return None
        try:
            sums = self._sums(X, args, scalar)
            if sums.trail != self._trail:
                raise UnsupportedLayers("a path that depends on the examples")
            return sums
        except UnsupportedLayers as reason:  # on other examples than the trial's
            self.path = f"plain: {reason}"
            return None

    def _try(
        self, X: Tensor, args: tuple[Tensor, ...], scalar: Callable[..., Tensor]
    ) -> str | None:
        """Return the path to take, or None where the gradients do not tell."""
        # Of the parameters: tokens are integers.
        single = self.model.values().dtype == torch.float32
        try:
            few = self._telling(X, args, scalar)
            if len(few) < min(2, len(X)):
                return None
            # Backwards too: a module that sorts its examples mixes up one of the two.
            for order in (few, few.flip(0)):
                error = self._difference(
                    X[order], tuple(a[order] for a in args), scalar
                )
                if not error <= (1e-4 if single else 1e-9):
                    return f"plain: layer by layer is off by {error:.1e}"
        except UnsupportedLayers as reason:
            return f"plain: {reason}"
        return "by layer"

    def _telling(
        self, X: Tensor, args: tuple[Tensor, ...], scalar: Callable[..., Tensor]
    ) -> Tensor:
        """Return a few examples whose gradient is not 0, as it is at a weight of 0."""
        for n in (_N_TRIED, len(X)):
            sums = self._sums(X[:n], tuple(a[:n] for a in args), scalar)
            few = sums.squared_norms().nonzero().flatten()[:_N_TRIED]
            if len(few) == _N_TRIED:
                break
        return few

    def _difference(
        self, X: Tensor, args: tuple[Tensor, ...], scalar: Callable[..., Tensor]
    ) -> float:
        """Return by how much the two kernels differ, relative to the squares."""
        sums = self._sums(X, args, scalar)
        self._trail = sums.trail
        rows = torch.cat([rows for _, rows in self._rows(X, args, scalar)])
        norms, moments = sums.squared_norms(), sums.moments()
        mean, squares = mean_and_squares(rows)
        errors = (
            (norms - _norms(rows)).abs().sum(),
            (moments.squares - squares).abs().sum(),
            (moments.mean - mean).square().sum() * len(X),
        )
        return float(torch.stack(errors).max() / _norms(rows).sum())

    def _sums(
        self, X: Tensor, args: tuple[Tensor, ...], scalar: Callable[..., Tensor]
    ) -> LayerSums:
        return LayerSums(self.model, X, lambda outputs: scalar(outputs, *args))

    def _rows(
        self, X: Tensor, args: tuple[Tensor, ...], scalar: Callable[..., Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        theta = self.model.values()
        for start in range(0, len(X), self.row_chunk_size):
            part = slice(start, start + self.row_chunk_size)
            yield values_and_gradients(
                self.model, theta, X[part], tuple(a[part] for a in args), scalar
            )


def _moments(values: Tensor, rows: Tensor) -> Moments:
    value = values.mean(dtype=torch.float64)
    return Moments(len(rows), value, *mean_and_squares(rows))


def _norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms.square()
