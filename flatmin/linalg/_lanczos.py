"""The Lanczos process: an operator as a small tridiagonal matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg._operator import LinearOperator
from flatmin.linalg._orthogonal import orthogonalise

__all__ = ["LanczosProcess"]


class LanczosProcess:
    """A V = V T + β v_{n+1} eₙᵀ from one start vector, a few steps at a time.

    Full, twice-applied orthogonalisation. Where the Krylov space ends, v_{n+1} and
    all vectors after it are 0: T then has exact zeros in their rows and columns, and
    f(T) e₁ does not see them. So a step asks the device for nothing, and whoever
    takes the steps looks from time to time whether the space is ``exhausted``.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        Symmetric.
    max_steps : int
        At most D; this many vectors are allocated.

    Attributes
    ----------
    basis : Tensor of shape (max_steps, D)
        Rows; the first ``n_steps`` are filled.
    n_steps : int
        Products taken since the last ``start``.
    """

    def __init__(self, operator: LinearOperator, max_steps: int) -> None:
        self.operator = operator
        self.max_steps = max_steps
        self.n_steps = 0
        self.basis = torch.empty(
            max_steps, operator.shape[-1], dtype=operator.dtype, device=operator.device
        )
        self._alpha = torch.zeros(
            max_steps, device=operator.device, dtype=torch.float64
        )
        self._beta = torch.zeros_like(self._alpha)

    def start(self, v: Tensor) -> None:
        """Begin anew from a vector.

        Parameters
        ----------
        v : Tensor of shape (D,)
            Of length one.
        """
        self.n_steps = 0
        self._alpha.zero_()
        self._beta.zero_()
        self.basis[0] = v

    def advance(self, n_steps: int) -> None:
        """Take steps, at most as many as are left.

        Parameters
        ----------
        n_steps : int
            One product each.
        """
        V, alpha, beta = self.basis, self._alpha, self._beta
        eps = torch.finfo(V.dtype).eps
        for n in range(self.n_steps, min(self.n_steps + n_steps, self.max_steps)):
            w, h = orthogonalise(self.operator.matvec(V[n]), V[: n + 1])
            alpha[n] = h[n]
            norm = torch.linalg.vector_norm(w, dtype=torch.float64)
            scale = torch.maximum(alpha.abs().amax(), beta.amax())
            # With `norm > ...` a NaN would end the process as if it were done.
            ends = norm <= 10 * eps * scale
            beta[n] = norm.masked_fill(ends, 0)
            if n + 1 < self.max_steps:
                V[n + 1] = w * (1 / norm).masked_fill(ends, 0).to(V.dtype)
            self.n_steps = n + 1

    @property
    def n_vectors(self) -> int:
        """How many basis vectors are not 0, of those filled."""
        ends = torch.nonzero(self._beta[: self.n_steps] == 0)
        return int(ends[0]) + 1 if len(ends) else self.n_steps

    @property
    def exhausted(self) -> bool:
        """Whether the steps so far span the whole Krylov space."""
        if self.n_steps in (0, self.operator.shape[-1]):
            return self.n_steps > 0
        return bool((self._beta[: self.n_steps] == 0).any())

    def tridiagonal(self) -> Tensor:
        """Return T, padded with zeros.

        Returns
        -------
        Tensor of shape (max_steps, max_steps)
            In float64. Its leading blocks are the T of fewer steps.
        """
        T = torch.diag(self._alpha)
        n = self.n_steps
        # The last β leads out of the basis.
        off = self._beta[: n - 1]
        T.diagonal(1)[: n - 1] = off
        T.diagonal(-1)[: n - 1] = off
        return T
