"""The symmetric linear operator, its algebra and its exports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import get_ident
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatmin._utils.arrays import check_tensor
from flatmin._utils.numbers import check_count

if TYPE_CHECKING:
    import scipy.sparse.linalg

__all__ = ["LinearOperator", "check_one_matrix", "check_operator", "knows_its_trace"]


class LinearOperator(ABC):
    """A symmetric matrix known by its products.

    Leading dimensions are several matrices, as of chains: an operator of shape
    ``(*chains, D, D)`` multiplies vectors of shape ``(*chains, D)``. A subclass
    writes ``_matvec``; sums, multiples and exports come with it.

    Parameters
    ----------
    size : int
        D, the number of rows and of columns.
    chains : tuple of int, default=()
        Leading dimensions.
    dtype : torch.dtype
        Of the vectors it takes and returns.
    device : torch.device
        Of the vectors it takes and returns.

    Attributes
    ----------
    shape : tuple of int
        ``(*chains, D, D)``.
    n_matvecs : int
        Products with one vector that the asking thread has taken so far (several
        matrices count once).

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import LinearOperator, eigsh
    >>> class Differences(LinearOperator):  # the second ones, on a ring of 4 points
    ...     def __init__(self):
    ...         super().__init__(4, dtype=torch.float64, device=torch.device("cpu"))
    ...     def _matvec(self, v):
    ...         return 2 * v - v.roll(1) - v.roll(-1)
    >>> eigsh(Differences(), 1, which="LA", rng=0).eigenvalues
    tensor([4.0000], dtype=torch.float64)
    >>> Differences().trace()
    tensor(8., dtype=torch.float64)
    """

    def __init__(
        self,
        size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        chains: tuple[int, ...] = (),
    ) -> None:
        size = check_count("size", size)
        self.shape = (*chains, size, size)
        self.dtype = dtype
        self.device = device
        self._n_matvecs: dict[int, int] = {}  # by thread

    @property
    def n_matvecs(self) -> int:
        """Products taken so far, by the thread that asks."""
        # Solvers count by differences, and two may work on one operator.
        return self._n_matvecs.get(get_ident(), 0)

    @n_matvecs.setter
    def n_matvecs(self, n: int) -> None:
        self._n_matvecs[get_ident()] = n

    @abstractmethod
    def _matvec(self, v: Tensor) -> Tensor:
        """Return A v for ``v`` of shape (\\*chains, D)."""

    def matvec(self, v: Tensor) -> Tensor:
        """Return the product with one vector.

        Parameters
        ----------
        v : Tensor of shape (\\*chains, D)
            In the operator's dtype and on its device.

        Returns
        -------
        Tensor of shape (\\*chains, D)

        Raises
        ------
        TypeError
            If it is no tensor of that dtype.
        ValueError
            If the shape does not fit.
        """
        check_tensor("v", v)
        if v.shape != self.shape[:-1]:
            raise ValueError(
                f"v must have shape {tuple(self.shape[:-1])}. "
                f"Got {tuple(v.shape)}; use matmat for a matrix of columns."
            )
        if v.dtype != self.dtype:
            raise TypeError(
                f"v must have the operator's dtype, {self.dtype}. Got {v.dtype}; use "
                "v.to(operator.dtype)."
            )
        self.n_matvecs += 1
        return self._matvec(v)

    def matmat(self, V: Tensor) -> Tensor:
        """Return the product with a matrix, column by column.

        Parameters
        ----------
        V : Tensor of shape (\\*chains, D, k)
            Columns are vectors.

        Returns
        -------
        Tensor of shape (\\*chains, D, k)
        """
        self._check_columns(V)
        return torch.stack([self.matvec(v) for v in V.unbind(-1)], dim=-1)

    def _check_columns(self, V: Tensor) -> None:
        check_tensor("V", V, 2)
        if V.shape[:-1] != self.shape[:-1] or V.dtype != self.dtype:
            raise ValueError(
                f"V must have shape ({', '.join(map(str, self.shape[:-1]))}, k) and "
                f"dtype {self.dtype}. Got {tuple(V.shape)} and {V.dtype}."
            )

    def to_dense(self) -> Tensor:
        """Return the matrix itself, by D products.

        Returns
        -------
        Tensor of shape (\\*chains, D, D)
        """
        eye = torch.eye(self.shape[-1], dtype=self.dtype, device=self.device)
        return self.matmat(eye.expand(self.shape))

    def trace(self) -> Tensor:
        """Return the exact trace; D products unless a subclass knows better.

        :func:`flatmin.linalg.trace` estimates it where that is too dear.

        Returns
        -------
        Tensor of shape (\\*chains)
        """
        return self.to_dense().diagonal(dim1=-2, dim2=-1).sum(-1)

    def trace_stderr(self) -> Tensor:
        """Return the standard error of :meth:`trace`: 0, unless it was handed in.

        Returns
        -------
        Tensor of shape (\\*chains)
        """
        return torch.zeros(self.shape[:-2], dtype=self.dtype, device=self.device)

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """Return the operator for SciPy's solvers, on NumPy arrays.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator

        Raises
        ------
        ValueError
            If the operator holds several matrices: SciPy knows single matrices only.
        """
        from scipy.sparse.linalg import LinearOperator as SciPyOperator

        if len(self.shape) != 2:
            raise ValueError(
                f"SciPy takes one matrix. Got several, of shape {self.shape}; "
                "export its members one by one."
            )

        def matvec(x: np.ndarray) -> np.ndarray:
            # A copy: SciPy may hand in its workspace, and an array that is read-only.
            v = torch.tensor(x.ravel(), dtype=self.dtype, device=self.device)
            return self.matvec(v).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return SciPyOperator(self.shape, matvec=matvec, rmatvec=matvec, dtype=dtype)

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.matvec(other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return _Combination((1.0, 1.0), (self, other))

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return _Combination((1.0, -1.0), (self, other))

    def __mul__(self, scalar: float | Tensor) -> LinearOperator:
        return _Combination((scalar,), (self,))

    __rmul__ = __mul__

    def __truediv__(self, scalar: float | Tensor) -> LinearOperator:
        return self * (1 / scalar)

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"<{type(self).__name__} {shape}, {self.dtype}, {self.device}>"


def check_operator(operator: Any) -> None:
    """Raise unless something is an operator.

    Parameters
    ----------
    operator : object

    Raises
    ------
    TypeError
        If it is not; of a tensor the message says how to make one.
    """
    if not isinstance(operator, LinearOperator):
        hint = "; wrap it: DenseOperator(...)" if isinstance(operator, Tensor) else ""
        raise TypeError(
            "operator must be a LinearOperator, such as HessianOperator(risk, theta). "
            f"Got {type(operator).__name__}{hint}."
        )


def check_one_matrix(operator: LinearOperator, function: str) -> None:
    """Raise if something is no operator, or holds several matrices.

    Parameters
    ----------
    operator : LinearOperator
    function : str
        Who asks, for the message.

    Raises
    ------
    TypeError
        If it is no operator.
    ValueError
        If the operator has leading dimensions.
    """
    check_operator(operator)
    if len(operator.shape) != 2:
        raise ValueError(
            f"{function} takes one matrix. Got several, of shape "
            f"{tuple(operator.shape)}; hand in its members one by one."
        )


def knows_its_trace(operator: LinearOperator) -> bool:
    """Return whether ``operator.trace()`` takes fewer than D products.

    Parameters
    ----------
    operator : LinearOperator

    Returns
    -------
    bool
    """
    if isinstance(operator, _Combination):
        return all(knows_its_trace(term) for term in operator.terms)
    return type(operator).trace is not LinearOperator.trace


class _Combination(LinearOperator):
    """Σ cᵢ Aᵢ of operators of one shape; a coefficient may have the batch's shape."""

    def __init__(
        self,
        coefficients: tuple[float | Tensor, ...],
        terms: tuple[LinearOperator, ...],
    ) -> None:
        first = terms[0]
        for term in terms[1:]:
            if (term.shape, term.dtype) != (first.shape, first.dtype):
                raise ValueError(
                    "Operators in a sum must agree in shape and dtype. Got "
                    f"{first!r} and {term!r}."
                )
        super().__init__(
            first.shape[-1],
            chains=first.shape[:-2],
            dtype=first.dtype,
            device=first.device,
        )
        self.coefficients = tuple(
            torch.as_tensor(c, dtype=self.dtype, device=self.device)
            for c in coefficients
        )
        self.terms = terms

    def _matvec(self, v: Tensor) -> Tensor:
        return self._sum([term.matvec(v) for term in self.terms], 1)

    def to_dense(self) -> Tensor:
        return self._sum(self._each("to_dense"), 2)

    def trace(self) -> Tensor:
        return self._sum(self._each("trace"), 0)

    def trace_stderr(self) -> Tensor:
        pairs = zip(self.coefficients, self.terms, strict=True)
        errors = [c * term.trace_stderr() for c, term in pairs]
        total: Tensor = torch.linalg.vector_norm(torch.stack(errors), dim=0)
        return total

    def _each(self, name: str) -> list[Tensor]:
        """Ask every term; a product with the sum is one with each of them."""
        parts, counts = [], []
        for term in self.terms:
            before = term.n_matvecs
            parts.append(getattr(term, name)())
            counts.append(term.n_matvecs - before)
        self.n_matvecs += max(counts)
        return parts

    def _sum(self, parts: list[Tensor], n_dims: int) -> Tensor:
        """Add parts whose last ``n_dims`` dimensions are not the batch's."""
        scaled = [
            c.reshape(c.shape + (1,) * n_dims) * part
            for c, part in zip(self.coefficients, parts, strict=True)
        ]
        return torch.stack(scaled).sum(0)
