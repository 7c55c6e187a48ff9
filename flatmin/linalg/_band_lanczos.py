"""Lanczos from several vectors, with a thick restart."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg._dense import eigh
from flatmin.linalg._operator import LinearOperator
from flatmin.linalg._orthogonal import orthogonalise, random_direction

__all__ = ["BandLanczos"]


class BandLanczos:
    """A basis of n vectors whose products are known, and p vectors to go on from.

    A V[:n] = V[:n + p] H[:, :n] holds to rounding, since H has measured inner products
    and nothing is left out: so the residual of a Ritz pair follows without a product.
    One start vector sees one vector of every eigenspace; a fresh one shows the next.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        Symmetric.
    start : Tensor of shape (D,)
        Of length one.
    n_basis : int
        n at most; then :meth:`restart`.
    n_starts : int
        p at most.
    rng : torch.Generator
        For fresh vectors, on the operator's device.

    Attributes
    ----------
    n : int
    p : int
    n_matvecs : int
        Products taken.
    n_basis, n_starts : int
        As above; :meth:`widen` changes the first.
    """

    def __init__(
        self,
        operator: LinearOperator,
        start: Tensor,
        *,
        n_basis: int,
        n_starts: int,
        rng: torch.Generator,
    ) -> None:
        self.operator = operator
        self.n_basis = n_basis
        self.n_starts = n_starts
        self.rng = rng
        self.n, self.p, self.n_matvecs = 0, 1, 0
        n_rows = n_basis + n_starts + 1
        self.V = start.new_empty(n_rows, len(start))  # rows are vectors
        self.H = torch.zeros(n_rows, n_basis, dtype=torch.float64, device=start.device)
        self.V[0] = start
        self._scale = self.H.new_zeros(())  # the largest inner product so far

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another product."""
        return self.n == self.n_basis

    def advance(self) -> None:
        """Take the product with the first vector to go on from."""
        self._extend(self.n, self.n + self.p)
        self.n += 1

    def widen(self, n_basis: int) -> None:
        """Make room for a larger basis; what is known stays.

        Parameters
        ----------
        n_basis : int
            Nothing happens where it is no larger.
        """
        more = n_basis - self.n_basis
        if more <= 0:
            return
        rows = self.V.new_empty(more, self.V.shape[1])
        self.V = torch.cat([self.V, rows])
        H = self.H.new_zeros(len(self.V), n_basis)
        H[: len(self.H), : self.n_basis] = self.H
        self.H, self.n_basis = H, n_basis

    def extend_from_random(self, n_steps: int) -> Tensor:
        """Take steps from a fresh vector, and return the Ritz values then.

        The fresh vector is orthogonal to the basis but not to the other vectors to go
        on from: what they hold is not hidden from it.

        Parameters
        ----------
        n_steps : int
            At most ``n_basis - n``.

        Returns
        -------
        Tensor of shape (n,)
        """
        V, H, n, p = self.V, self.H, self.n, self.p
        stop = n + n_steps
        others = slice(stop + 1, stop + 1 + p)
        V[others], H[others, :n] = V[n : n + p].clone(), H[n : n + p, :n].clone()
        H[n : stop + 1, :n] = 0
        V[n] = random_direction(V[:n], self.rng)
        for j in range(n, stop):
            self._extend(j, j + 1)
        self.n, self.p = stop, p + 1
        # Now make the others orthogonal to the fresh vectors; the products with the
        # basis, which they are part of, are then spread over these.
        for row in range(stop + 1, stop + 1 + p):
            coupling = H[row, :n].clone()
            rest, along = orthogonalise(V[row], V[n:row])
            norm = torch.linalg.vector_norm(rest, dtype=torch.float64)
            H[n:row, :n] += along.unsqueeze(1) * coupling
            if norm <= 10 * torch.finfo(V.dtype).eps:
                V[row] = random_direction(V[:row], self.rng)
                H[row, :n] = 0
            else:
                V[row] = rest / norm.to(V.dtype)
                H[row, :n] = norm * coupling
        return self.ritz()[0]

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return Ritz values, coefficients and residual norms.

        The residual of V s is ‖(H - θ) s‖ within the basis and ‖H s‖ in the p rows
        outside of it. The first is rounding for a symmetric operator and shows one that
        is not.

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
        # Above the diagonal everything is measured, below it what a restart knows.
        rayleigh = measured.triu() + measured.triu(1).mT
        values, S = eigh(rayleigh)
        inside = torch.linalg.vector_norm(measured @ S - S * values, dim=0)
        outside = torch.linalg.vector_norm(self.H[n : n + self.p, :n] @ S, dim=0)
        return values, S, torch.hypot(inside, outside)

    def vectors(self, S: Tensor) -> Tensor:
        """Return the columns V S.

        Parameters
        ----------
        S : Tensor of shape (n, k)

        Returns
        -------
        Tensor of shape (D, k)
        """
        return self.V[: self.n].mT @ S.to(self.V.dtype)

    def restart(self, S: Tensor, values: Tensor) -> None:
        """Make Ritz vectors the basis; what to go on from stays.

        Parameters
        ----------
        S : Tensor of shape (n, m)
            Columns from :meth:`ritz`.
        values : Tensor of shape (m,)
            Their values.
        """
        V, H, n, p, m = self.V, self.H, self.n, self.p, len(values)
        coupling = H[n : n + p, :n] @ S
        others = V[n : n + p].clone()
        V[:m] = S.mT.to(V.dtype) @ V[:n]
        V[m : m + p] = others
        H.zero_()
        H.diagonal()[:m] = values
        H[m : m + p, :m] = coupling
        self.n = m

    def _extend(self, j: int, stop: int) -> None:
        """Take A V[j]. Its part orthogonal to the first rows becomes V[stop]."""
        V, H = self.V, self.H
        w, along = orthogonalise(self.operator.matvec(V[j]), V[:stop])
        self.n_matvecs += 1
        H[:stop, j] = along
        self._scale = torch.maximum(self._scale, along.abs().amax())
        beta = torch.linalg.vector_norm(w, dtype=torch.float64)
        if beta <= 10 * torch.finfo(w.dtype).eps * self._scale:
            # Nothing but rounding is new: the subspace is invariant.
            V[stop] = random_direction(V[:stop], self.rng)
        else:
            V[stop] = w / beta.to(w.dtype)
            H[stop, j] = beta
