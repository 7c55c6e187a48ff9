"""Operators with a closed form; all but a bare function can draw from N(0, A)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating, check_tensor
from flatmin._utils.callables import check_callable
from flatmin._utils.placement import resolve_device, resolve_dtype
from flatmin._utils.random import make_generator
from flatmin.linalg._operator import LinearOperator

__all__ = [
    "DenseOperator",
    "DiagonalOperator",
    "FunctionOperator",
    "LowRankOperator",
    "ScaledIdentityOperator",
]


class FunctionOperator(LinearOperator):
    """Any function ``v -> A v`` as an operator.

    Parameters
    ----------
    function : callable
        Takes and returns a Tensor of shape (D,).
    size : int
        D.
    dtype : torch.dtype, default=torch.float32
        Of the vectors.
    device : torch.device or str, default="cpu"
        Of the vectors.

    Examples
    --------
    >>> A = FunctionOperator(lambda v: 3 * v, 2)
    >>> A @ torch.ones(2)
    tensor([3., 3.])
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_callable("function", function, "v")
        super().__init__(
            size, dtype=resolve_dtype(dtype), device=resolve_device(device)
        )
        self.function = function

    def _matvec(self, v: Tensor) -> Tensor:
        return self.function(v)


class DenseOperator(LinearOperator):
    """A matrix that is there in full.

    Parameters
    ----------
    matrix : Tensor of shape (\\*chains, D, D)
        Symmetric; not checked.

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import DenseOperator
    >>> A = DenseOperator(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    >>> A.matvec(torch.tensor([1.0, 0.0])), A.trace()
    (tensor([2., 1.]), tensor(4.))
    """

    def __init__(self, matrix: Tensor) -> None:
        check_floating("matrix", matrix, 2)
        if matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(f"matrix must be square. Got shape {tuple(matrix.shape)}.")
        super().__init__(
            matrix.shape[-1],
            chains=tuple(matrix.shape[:-2]),
            dtype=matrix.dtype,
            device=matrix.device,
        )
        self.matrix = matrix

    def _matvec(self, v: Tensor) -> Tensor:
        return (self.matrix @ v.unsqueeze(-1)).squeeze(-1)

    def matmat(self, V: Tensor) -> Tensor:
        """See :meth:`LinearOperator.matmat`."""
        self._check_columns(V)
        self.n_matvecs += V.shape[-1]
        return self.matrix @ V

    def to_dense(self) -> Tensor:
        """See :meth:`LinearOperator.to_dense`."""
        return self.matrix

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`."""
        return self.matrix.diagonal(dim1=-2, dim2=-1).sum(-1)

    def sample(self, rng: torch.Generator | int | None = None) -> Tensor:
        """Draw from N(0, A) by the eigendecomposition of A.

        Parameters
        ----------
        rng : torch.Generator, int or None, default=None
            A generator on the operator's device; None is random.

        Returns
        -------
        Tensor of shape (\\*chains, D)
            Negative eigenvalues count as 0: A should have none but by rounding.
        """
        values, vectors = torch.linalg.eigh(self.matrix)
        z = _standard_normal(self, self.shape[:-1], rng)
        coefficients: Tensor = z * values.clamp(min=0).sqrt()
        draw: Tensor = vectors @ coefficients.unsqueeze(-1)
        return draw.squeeze(-1)


class ScaledIdentityOperator(LinearOperator):
    """s I.

    Parameters
    ----------
    scale : Tensor of shape (\\*chains)
        s, in the dtype of the vectors.
    size : int
        D.

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import ScaledIdentityOperator
    >>> A = ScaledIdentityOperator(torch.tensor(2.0), 3)
    >>> A.matvec(torch.ones(3)), A.trace()
    (tensor([2., 2., 2.]), tensor(6.))
    """

    def __init__(self, scale: Tensor, size: int) -> None:
        check_floating("scale", scale, 0)
        super().__init__(
            size,
            chains=tuple(scale.shape),
            dtype=scale.dtype,
            device=scale.device,
        )
        self.scale = scale
        self.size = size

    def _matvec(self, v: Tensor) -> Tensor:
        return self.scale.unsqueeze(-1) * v

    def to_dense(self) -> Tensor:
        """See :meth:`LinearOperator.to_dense`; without products."""
        return torch.diag_embed(self.scale.unsqueeze(-1).expand(self.shape[:-1]))

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`."""
        return self.scale * self.shape[-1]

    def sample(self, rng: torch.Generator | int | None = None) -> Tensor:
        """Draw from N(0, s I).

        Parameters
        ----------
        rng : torch.Generator, int or None, default=None
            A generator on the operator's device; None is random.

        Returns
        -------
        Tensor of shape (\\*chains, D)
        """
        z = _standard_normal(self, self.shape[:-1], rng)
        return z * self.scale.sqrt().unsqueeze(-1)


class DiagonalOperator(LinearOperator):
    """diag(d).

    Parameters
    ----------
    diagonal : Tensor of shape (\\*chains, D)
        d.

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import DiagonalOperator
    >>> A = DiagonalOperator(torch.tensor([2.0, 3.0]))
    >>> (A + A).matvec(torch.ones(2))
    tensor([4., 6.])
    """

    def __init__(self, diagonal: Tensor) -> None:
        check_floating("diagonal", diagonal, 1)
        super().__init__(
            diagonal.shape[-1],
            chains=tuple(diagonal.shape[:-1]),
            dtype=diagonal.dtype,
            device=diagonal.device,
        )
        self.diagonal = diagonal

    def _matvec(self, v: Tensor) -> Tensor:
        return self.diagonal * v

    def to_dense(self) -> Tensor:
        """See :meth:`LinearOperator.to_dense`; without products."""
        return torch.diag_embed(self.diagonal)

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`."""
        return self.diagonal.sum(-1)

    def sample(self, rng: torch.Generator | int | None = None) -> Tensor:
        """Draw from N(0, diag(d)); d must not be negative.

        Parameters
        ----------
        rng : torch.Generator, int or None, default=None
            A generator on the operator's device; None is random.

        Returns
        -------
        Tensor of shape (\\*chains, D)
        """
        return _standard_normal(self, self.shape[:-1], rng) * self.diagonal.sqrt()


class LowRankOperator(LinearOperator):
    """U diag(λ) Uᵀ with orthonormal columns.

    Parameters
    ----------
    eigenvalues : Tensor of shape (\\*chains, k)
        λ.
    eigenvectors : Tensor of shape (\\*chains, D, k)
        U, columns are vectors.

    Examples
    --------
    >>> A = LowRankOperator(torch.tensor([2.0]), torch.tensor([[0.6], [0.8]]))
    >>> A.trace(), A @ torch.tensor([0.6, 0.8])
    (tensor(2.), tensor([1.2000, 1.6000]))
    """

    def __init__(self, eigenvalues: Tensor, eigenvectors: Tensor) -> None:
        check_tensor("eigenvalues", eigenvalues, 1)
        check_floating("eigenvectors", eigenvectors, 2)
        if eigenvalues.shape[-1] != eigenvectors.shape[-1]:
            raise ValueError(
                "eigenvalues must be as many as the columns of eigenvectors. Got "
                f"shapes {tuple(eigenvalues.shape)} and {tuple(eigenvectors.shape)}."
            )
        super().__init__(
            eigenvectors.shape[-2],
            chains=tuple(eigenvectors.shape[:-2]),
            dtype=eigenvectors.dtype,
            device=eigenvectors.device,
        )
        self.eigenvalues = eigenvalues.to(eigenvectors.dtype)
        self.eigenvectors = eigenvectors

    def _matvec(self, v: Tensor) -> Tensor:
        U = self.eigenvectors
        coefficients = self.eigenvalues * (U.mT @ v.unsqueeze(-1)).squeeze(-1)
        return (U @ coefficients.unsqueeze(-1)).squeeze(-1)

    def to_dense(self) -> Tensor:
        """See :meth:`LinearOperator.to_dense`; without products."""
        U = self.eigenvectors
        return (U * self.eigenvalues.unsqueeze(-2)) @ U.mT

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`."""
        return self.eigenvalues.sum(-1)

    def sample(self, rng: torch.Generator | int | None = None) -> Tensor:
        """Draw from N(0, U diag(λ) Uᵀ); λ must not be negative.

        Parameters
        ----------
        rng : torch.Generator, int or None, default=None
            A generator on the operator's device; None is random.

        Returns
        -------
        Tensor of shape (\\*chains, D)
        """
        z = _standard_normal(self, self.eigenvalues.shape, rng)
        coefficients = z * self.eigenvalues.sqrt()
        return (self.eigenvectors @ coefficients.unsqueeze(-1)).squeeze(-1)


def _standard_normal(
    operator: LinearOperator, shape: tuple[int, ...], rng: torch.Generator | int | None
) -> Tensor:
    generator = make_generator(rng, operator.device)
    return torch.randn(
        shape, generator=generator, dtype=operator.dtype, device=operator.device
    )
