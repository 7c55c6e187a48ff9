"""Lanczos from one vector with few rows, and a look for copies that keeps none."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg._basis_memory import BasisMemory
from flatmin.linalg._bounded_basis import BoundedBasis
from flatmin.linalg._dense import eigh
from flatmin.linalg._operator import LinearOperator

__all__ = ["BoundedLanczos"]


class BoundedLanczos:
    """A basis of n rows whose products are known, and one row to go on from.

    A V[:n] = V[:n + 1] H[:, :n] + E. H has measured inner products. The columns of E
    are what rounding in storage and :meth:`lock` have left out; only their lengths are
    known. They add to the residual of a Ritz pair as independent directions do, which
    is an estimate: a product tells the residual at the end.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        Symmetric.
    start : Tensor of shape (D,) or None
        Of length one; None draws it.
    memory : BasisMemory
        n is at most its ``n_basis``; then :meth:`restart`. There is one row more.
    rng : torch.Generator
        For fresh vectors, on the operator's device.

    Attributes
    ----------
    n : int
    n_matvecs : int
        Products taken.
    """

    def __init__(
        self,
        operator: LinearOperator,
        start: Tensor | None,
        *,
        memory: BasisMemory,
        rng: torch.Generator,
    ) -> None:
        n_basis = memory.n_basis
        self.n_basis, self.rng = n_basis, rng
        self.n, self.n_matvecs = 0, 0
        self.basis = BoundedBasis(
            n_basis + 1,
            operator,
            dtype=memory.dtype,
            device=memory.device,
            ranks=memory.ranks,
        )
        self.H = torch.zeros(
            n_basis + 1, n_basis, dtype=torch.float64, device=memory.device
        )
        self._left_out = self.H.new_zeros(n_basis)  # lengths of the columns of E
        self._scale = self.H.new_zeros(())  # the largest inner product so far
        if start is None:
            self.basis.put_random(0, rng)
        else:
            self.basis.put_start(start)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another product."""
        return self.n == self.n_basis

    def advance(self) -> None:
        """Take the product with the row to go on from."""
        n, H = self.n, self.H
        along, beta, lost = self._step(n, n + 1, n + 1)
        H[: n + 1, n] = along
        H[n + 1, n] = beta
        self._left_out[n] = beta * lost
        self.n += 1

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values, coefficients and estimated residual norms.

        Returns
        -------
        values : Tensor of shape (n,)
            Rising.
        S : Tensor of shape (n, n)
            Columns.
        residuals : Tensor of shape (n,)
        """
        n = self.n
        measured = self.H[:n, :n]
        values, S = eigh(measured.triu() + measured.triu(1).mT)
        # LAPACK with another number of threads would have other bits.
        values = self.basis.ranks.of_first(values)
        S = self.basis.ranks.of_first(S)
        return values, S, torch.hypot((self.H[n, :n] @ S).abs(), self.left_out(S))

    def left_out(self, S: Tensor) -> Tensor:
        """Return the estimated length of what the relation leaves out of A V S.

        Parameters
        ----------
        S : Tensor of shape (n, m)

        Returns
        -------
        Tensor of shape (m,)
        """
        lengths: Tensor = torch.linalg.vector_norm(
            self._left_out[: len(S), None] * S, dim=0
        )
        return lengths

    def combined(self, S: Tensor) -> Tensor:
        """Return the columns V S, as rows.

        Parameters
        ----------
        S : Tensor of shape (n, k)

        Returns
        -------
        Tensor of shape (k, w)
        """
        return self.basis.combined(S)

    def restart(self, S: Tensor, values: Tensor) -> None:
        """Make Ritz vectors the basis; the row to go on from stays.

        Parameters
        ----------
        S : Tensor of shape (n, m)
            Columns from :meth:`ritz`, m < n_basis.
        values : Tensor of shape (m,)
            Their values.
        """
        H, n, m = self.H, self.n, len(values)
        coupling = H[n, :n] @ S
        left_out = self.left_out(S)
        lost = self.basis.rotate(S)
        self.basis.move(n, m)
        H.zero_()
        H.diagonal()[:m] = values
        H[m, :m] = coupling
        # (A - θ) of what rounding has changed; its direction is any.
        self._left_out.zero_()
        self._left_out[:m] = torch.hypot(left_out, self._scale * lost)
        self.n = m

    def lock(self, S: Tensor, values: Tensor) -> None:
        """Make Ritz vectors the basis, and go on from a fresh vector.

        What the residuals of the Ritz vectors are made of is given up.

        Parameters
        ----------
        S : Tensor of shape (n, m)
            Columns from :meth:`ritz`, m < n_basis.
        values : Tensor of shape (m,)
            Their values.
        """
        coupling = (self.H[self.n, : self.n] @ S).abs()
        self.restart(S, values)
        m = self.n
        self.H[m, :m] = 0
        self._left_out[:m] = torch.hypot(self._left_out[:m], coupling)
        self.basis.put_random(m, self.rng)

    def look(self, n_steps: int) -> Tensor:
        """Return Ritz values on what is orthogonal to the basis, from a random vector.

        Lanczos with the last two vectors alone, each orthogonal to the basis. What
        has been seen is not kept out: a value can come again, and none is made up.
        Afterwards there is a fresh vector to go on from.

        Parameters
        ----------
        n_steps : int
            Products at most; fewer where the Krylov space ends.

        Returns
        -------
        Tensor of shape (n_seen,)
        """
        n = self.n
        T = self.H.new_zeros(n_steps, n_steps)
        self.basis.put_random(n, self.rng)
        for j in range(n_steps):
            here, there = n + j % 2, n + (j + 1) % 2
            along, beta, _ = self._step(here, n + min(j + 1, 2), there)
            T[j, j] = along[here]
            seen = T[: j + 1, : j + 1]
            if j + 1 == n_steps or not bool(beta != 0):
                break
            T[j + 1, j] = T[j, j + 1] = beta
        self.basis.put_random(n, self.rng)
        return self.basis.ranks.of_first(eigh(seen)[0])

    def _step(self, j: int, stop: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
        """Take A V[j]. Its part orthogonal to the first rows becomes V[target].

        Parameters
        ----------
        j : int
        stop : int
            The first rows.
        target : int

        Returns
        -------
        components : Tensor of shape (stop,)
        beta : Tensor of shape ()
            The length of the part; 0 where a random vector has taken its place.
        lost : Tensor of shape ()
            That of what rounding has changed in the row.
        """
        basis = self.basis
        w = basis.product(j)
        self.n_matvecs += 1
        along = basis.orthogonalise(w, stop)
        self._scale = torch.maximum(self._scale, along.abs().amax())
        beta = basis.norm(w)
        if beta <= 10 * torch.finfo(w.dtype).eps * self._scale:
            # Nothing but rounding is new: the subspace is invariant.
            return along, torch.zeros_like(beta), basis.put_random(target, self.rng)
        return along, beta, basis.put(target, w, beta)
