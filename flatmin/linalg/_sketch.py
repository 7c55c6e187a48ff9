"""The range of a symmetric operator from random vectors, each left out in turn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatmin.linalg._operator import LinearOperator
from flatmin.linalg._orthogonal import dots

__all__ = ["SMALL", "Sketch", "jackknife_error", "max_sketch"]

# D up to which the first sketch of ten vectors would be the whole space, at twice the
# price of the matrix itself.
SMALL = 10

# Numbers in the four blocks of vectors of a sketch (1 GiB in float32).
_ROOM = 1 << 28


def max_sketch(operator: LinearOperator, max_matvecs: int) -> int:
    """Return how many test vectors the products and the memory allow, 3 or more.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
    max_matvecs : int
        Two are spent on each vector; 6 or more.

    Returns
    -------
    int
    """
    size = operator.shape[-1]
    return min(max_matvecs // 2, size, max(3, _ROOM // (4 * size)))


class Sketch:
    """Y = A Ω = Q R and Z = A Q, which grow without a product taken twice.

    Without test vector i the range of Y is that of Q (I - sᵢ sᵢᵀ), sᵢ being the unit
    vector that is orthogonal to the other columns of R [1]_. So all k leave-one-out
    projections cost one factorisation.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        Symmetric.
    draw : callable
        Takes an operator and a generator, returns a test vector of shape (D,).

    Attributes
    ----------
    k : int
        Number of test vectors.
    Omega, Q, Z : Tensor of shape (D, k)
        Columns are vectors.
    W, R, H, S : Tensor of shape (k, k)
        QᵀΩ, QᵀY, QᵀZ and the columns sᵢ, in float64.

    References
    ----------
    .. [1] E. N. Epperly, J. A. Tropp and R. J. Webber, "XTrace: Making the most of
       every sample in stochastic trace estimation", 2024, :doi:`10.1137/23M1548323`.
    """

    def __init__(
        self,
        operator: LinearOperator,
        draw: Callable[[LinearOperator, torch.Generator], Tensor],
    ) -> None:
        self._operator, self._draw = operator, draw
        self.k = 0
        self.Omega = torch.empty(
            operator.shape[-1], 0, dtype=operator.dtype, device=operator.device
        )
        self._Y = self.Q = self.Z = self.Omega

    def grow(self, n: int, rng: torch.Generator) -> None:
        """Add test vectors; two products each.

        Parameters
        ----------
        n : int
        rng : torch.Generator
            On the operator's device.
        """
        A = self._operator
        self.k += n
        Omega = torch.stack([self._draw(A, rng) for _ in range(n)], dim=1)
        Y = A.matmat(Omega)
        Q = self._outside(Y)
        # Where nothing but rounding is left, a random direction is as good, and
        # orthogonal to Q after the second pass, which rounding is not.
        eps = torch.finfo(A.dtype).eps
        floor = eps * Y.abs().amax() + torch.finfo(A.dtype).tiny
        noise = torch.randn(Q.shape, generator=rng, dtype=A.dtype, device=A.device)
        Q = torch.linalg.qr(Q + floor * noise).Q
        Q = torch.linalg.qr(self._outside(Q)).Q
        self.Omega = torch.cat([self.Omega, Omega], dim=1)
        self._Y = torch.cat([self._Y, Y], dim=1)
        self.Q = torch.cat([self.Q, Q], dim=1)
        self.Z = torch.cat([self.Z, A.matmat(Q)], dim=1)
        self._factor()

    def angles(self) -> tuple[Tensor, Tensor]:
        """Return cosines and sines between all sᵢ and sⱼ.

        Returns
        -------
        cosine : Tensor of shape (k, k)
        sine : Tensor of shape (k, k)
            0 where the two are parallel to rounding: leaving out one of them then
            leaves out the other.
        """
        cosine = self.S.mT @ self.S
        squared = 1 - cosine.square()
        return cosine, torch.where(squared > 1e-12, squared, 0.0).clamp(min=0).sqrt()

    def second_directions(self) -> Tensor:
        """Return what leaving out i takes from Q, once j is missing.

        Returns
        -------
        Tensor of shape (k, k, k)
            Axes: component, i, j. (sᵢ - sⱼ sⱼᵀsᵢ) at length one.
        """
        cosine, sine = self.angles()
        rest: Tensor = self.S.unsqueeze(2) - cosine * self.S.unsqueeze(1)
        return rest * torch.where(sine > 0, 1 / sine, 0.0)

    def _outside(self, X: Tensor) -> Tensor:
        return X - self.Q @ dots(self.Q.mT, X).to(X.dtype)

    def _factor(self) -> None:
        Qt = self.Q.mT
        self.W, self.R = dots(Qt, self.Omega), dots(Qt, self._Y)
        self.H = dots(Qt, self.Z)
        # R is singular where A has a smaller rank than k; any s will do there.
        R = self.R.triu()
        largest = R.abs().amax()
        R = R / torch.where(largest > 0, largest, 1.0)
        diagonal = R.diagonal()
        floor = torch.finfo(R.dtype).eps * diagonal.abs().amax()
        floor = torch.where(floor > 0, floor, 1.0)
        small = diagonal.abs() < floor
        R = R + torch.diag(torch.where(small, floor, 0.0))
        eye = torch.eye(self.k, dtype=R.dtype, device=R.device)
        inverse = torch.linalg.solve_triangular(R, eye, upper=True)
        self.S = torch.nn.functional.normalize(inverse.mT, dim=0)


def jackknife_error(without: Tensor) -> Tensor:
    """Return the standard error of an estimate from those without one vector each.

    Parameters
    ----------
    without : Tensor of shape (\\*shape, k)

    Returns
    -------
    Tensor of shape (\\*shape)
    """
    error: Tensor = without.std(-1, correction=0) * (without.shape[-1] - 1) ** 0.5
    return error
