"""|A|, known by Lanczos."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin._utils.arrays import check_tensor
from flatmin._utils.numbers import check_positive
from flatmin._utils.random import make_generator
from flatmin.linalg._operator import LinearOperator, check_one_matrix
from flatmin.linalg._sqrt import sqrt_matvec

__all__ = ["AbsoluteOperator"]


class AbsoluteOperator(LinearOperator):
    """|A|: the eigenvectors of A, with the magnitudes of its eigenvalues.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        A, symmetric.
    trace : Tensor of shape ()
        Tr|A|, which is not cheap: for example D times the mean of ``torch.abs`` over a
        :func:`flatmin.linalg.spectral_density`.
    trace_stderr : Tensor of shape (), default=None
        Its standard error; None is 0.
    tol : float, default=0.05
        Relative error of |A|^(1/2) z, as in :func:`flatmin.linalg.sqrt_matvec`.

    Examples
    --------
    >>> from flatmin.linalg import DiagonalOperator
    >>> A = DiagonalOperator(torch.tensor([2.0, -3.0]))
    >>> AbsoluteOperator(A, torch.tensor(5.0)) @ torch.ones(2)
    tensor([2.0000, 3.0000])
    """

    def __init__(
        self,
        operator: LinearOperator,
        trace: Tensor,
        *,
        trace_stderr: Tensor | None = None,
        tol: float = 0.05,
    ) -> None:
        check_one_matrix(operator, "AbsoluteOperator")
        check_tensor("trace", trace)
        if trace_stderr is None:
            trace_stderr = torch.zeros_like(trace)
        check_tensor("trace_stderr", trace_stderr)
        tol = check_positive("tol", tol)
        super().__init__(
            operator.shape[-1], dtype=operator.dtype, device=operator.device
        )
        self.operator = operator
        self.tol = tol
        self._trace = trace.to(operator.dtype)
        self._trace_stderr = trace_stderr.to(operator.dtype)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._root(self._root(v))

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`; as it was given."""
        return self._trace

    def trace_stderr(self) -> Tensor:
        """See :meth:`LinearOperator.trace_stderr`; as it was given."""
        return self._trace_stderr

    def sample(self, rng: torch.Generator | int | None = None) -> Tensor:
        """Draw from N(0, |A|): |A|^(1/2) z.

        Parameters
        ----------
        rng : torch.Generator, int or None, default=None
            A generator on the operator's device; None is random.

        Returns
        -------
        Tensor of shape (D,)
        """
        generator = make_generator(rng, self.device)
        z = torch.randn(
            self.shape[-1], generator=generator, dtype=self.dtype, device=self.device
        )
        return self._root(z)

    def _root(self, z: Tensor) -> Tensor:
        return sqrt_matvec(self.operator, z, tol=self.tol).vector
