"""Rows of a basis in another memory, precision or process than the products."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg._distributed import VectorShards
from flatmin.linalg._operator import LinearOperator
from flatmin.linalg._orthogonal import column_blocks, dots

__all__ = ["BoundedBasis"]


class BoundedBasis:
    """So many rows, and one vector to work on: nothing else has the size of a vector.

    A product is taken of a row as it is stored, so what the storage rounds away is no
    part of the relation A V = V H but a vector that is left out, whose length is told.
    Vectors that are worked on lie where the rows are and have the dtype of the
    products; they are changed in place, block by block, and summed in float64.

    Parameters
    ----------
    n_rows : int
    operator : LinearOperator of shape (D, D)
    dtype : torch.dtype
        Of the rows.
    device : torch.device
        Of the rows.
    ranks : VectorShards
        Rows are shards, of w coordinates.
    """

    def __init__(
        self,
        n_rows: int,
        operator: LinearOperator,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ranks: VectorShards,
    ) -> None:
        self.operator = operator
        self.ranks = ranks
        self.rounds = dtype != operator.dtype
        # Memory that no row was written into yet is not taken.
        self._rows = torch.empty(n_rows, ranks.width, dtype=dtype, device=device)

    def product(self, i: int) -> Tensor:
        """Return the shard of the product with a row.

        Parameters
        ----------
        i : int

        Returns
        -------
        Tensor of shape (w,)
        """
        return self.product_with(self._rows[i])

    def product_with(self, shard: Tensor) -> Tensor:
        """Return the shard of the product with a vector.

        Parameters
        ----------
        shard : Tensor of shape (w,)

        Returns
        -------
        Tensor of shape (w,)
        """
        # What has few digits is sent with few.
        v = self.ranks.whole(shard).to(self.operator.dtype)
        with self.ranks.agreed("a product with the matrix"):
            product = self.operator.matvec(v)
        return self._mine(product)

    def dots(self, w: Tensor, stop: int) -> Tensor:
        """Return the inner products with the first rows, in float64.

        Parameters
        ----------
        w : Tensor of shape (w,)
        stop : int

        Returns
        -------
        Tensor of shape (stop,)
        """
        return self.ranks.sum(dots(self._rows[:stop], w))

    def orthogonalise(self, w: Tensor, stop: int) -> Tensor:
        """Take away the components along the first rows, in two passes.

        Parameters
        ----------
        w : Tensor of shape (w,)
            Changed in place.
        stop : int

        Returns
        -------
        Tensor of shape (stop,)
            The components, in float64.
        """
        V, components = self._rows[:stop], torch.zeros((), device=w.device)
        for _ in range(2):
            along = self.dots(w, stop)
            for block in column_blocks(V):
                w[block] -= along.to(w.dtype) @ V[:, block].to(w.dtype)
            components = components + along
        return components

    def norm(self, w: Tensor) -> Tensor:
        """Return the length of a vector, in float64.

        Parameters
        ----------
        w : Tensor of shape (w,)

        Returns
        -------
        Tensor of shape ()
        """
        blocks = (w[block].double() for block in column_blocks(w.unsqueeze(0)))
        squares = sum((part @ part for part in blocks), w.new_zeros((), dtype=_WIDE))
        return self.ranks.sum(squares).sqrt()

    def put(self, i: int, w: Tensor, norm: Tensor) -> Tensor:
        """Make w / norm a row.

        Parameters
        ----------
        i : int
        w : Tensor of shape (w,)
        norm : Tensor of shape ()

        Returns
        -------
        Tensor of shape ()
            The length of what rounding has changed, in float64.
        """
        squares = torch.zeros(1, dtype=_WIDE, device=w.device)
        for block in column_blocks(w.unsqueeze(0)):
            part = w[block] / norm.to(w.dtype)
            squares += self._store(slice(i, i + 1), block, part.unsqueeze(0))
        return self._lengths(squares)[0]

    def put_random(self, i: int, rng: torch.Generator) -> Tensor:
        """Make a random vector, orthogonal to the rows before, a row.

        Parameters
        ----------
        i : int
        rng : torch.Generator
            On the device of the operator; every rank draws the whole vector from it.

        Returns
        -------
        Tensor of shape ()
            As by :meth:`put`.
        """
        size, dtype = self.ranks.size, self.operator.dtype
        w = torch.randn(size, generator=rng, dtype=dtype, device=rng.device)
        w = self._mine(w)
        self.orthogonalise(w, i)
        return self.put(i, w, self.norm(w))

    def put_start(self, start: Tensor) -> None:
        """Make a vector of length one the first row.

        Parameters
        ----------
        start : Tensor of shape (D,)
        """
        w = self._mine(start)
        self.put(0, w, self.norm(w))

    def move(self, source: int, target: int) -> None:
        """Copy a row to another place.

        Parameters
        ----------
        source : int
        target : int
        """
        self._rows[target] = self._rows[source]

    def clear(self) -> None:
        """Let go of the rows."""
        self._rows = self._rows.new_empty(0, self.ranks.width)

    def rotate(self, S: Tensor) -> Tensor:
        """Make the columns V S the first rows.

        Parameters
        ----------
        S : Tensor of shape (n, m)

        Returns
        -------
        Tensor of shape (m,)
            The lengths of what rounding has changed, in float64.
        """
        n, m = S.shape
        squares = torch.zeros(m, dtype=_WIDE, device=self._rows.device)
        for block in column_blocks(self._rows[:n]):
            squares += self._store(slice(m), block, self._combined(S, block))
        return self._lengths(squares)

    def combined(self, S: Tensor) -> Tensor:
        """Return the columns V S, as rows of the dtype of the products.

        Parameters
        ----------
        S : Tensor of shape (n, m)

        Returns
        -------
        Tensor of shape (m, w)
        """
        V = self._rows
        found = V.new_empty(S.shape[1], V.shape[1], dtype=self.operator.dtype)
        for block in column_blocks(V[: len(S)]):
            found[:, block] = self._combined(S, block)
        return found

    def _combined(self, S: Tensor, block: slice) -> Tensor:
        dtype = self.operator.dtype
        return S.mT.to(dtype) @ self._rows[: len(S), block].to(dtype)

    def _store(self, rows: slice, block: slice, parts: Tensor) -> Tensor:
        """Store a block of some rows; return the squares of what is lost, by row."""
        self._rows[rows, block] = parts.to(self._rows.dtype)
        if not self.rounds:
            return parts.new_zeros(len(parts), dtype=_WIDE)
        lost = self._rows[rows, block].double() - parts.double()
        return (lost * lost).sum(1)

    def _lengths(self, squares: Tensor) -> Tensor:
        return self.ranks.sum(squares).sqrt() if self.rounds else squares

    def _mine(self, vector: Tensor) -> Tensor:
        """Return the shard of a whole vector where the rows are."""
        return self.ranks.shard(vector).to(self._rows.device)


_WIDE = torch.float64
