"""Leading eigenpairs of H and of Σ: dense where small, matrix-free where not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating, check_tensor
from flatmin._utils.numbers import check_count, check_positive
from flatmin._utils.random import check_seed
from flatmin.curvature._covariance import covariance_operator
from flatmin.curvature._hessian import HessianOperator
from flatmin.curvature._point import Point, as_point
from flatmin.curvature._preconditioner import check_preconditioner
from flatmin.linalg import Eigenpairs, Which, eigsh, order_eigenvalues
from flatmin.linalg._basis_memory import search_arguments
from flatmin.risk import AnalyticRisk, Risk
from flatmin.risk.arguments import as_direction, as_indices

__all__ = ["covariance_eigenpairs", "hessian_eigenpairs", "minibatch_eigenpairs"]

# Numbers in a matrix of gradients up to which the Gram matrix is used; above, Lanczos
# on products with Σ. In float32 the matrix is 512 MiB, and its copies on the way four
# times that.
GRAM_LIMIT = 1 << 27


def hessian_eigenpairs(
    risk: Risk,
    theta: Point,
    k: int,
    *,
    which: Which = "LA",
    tol: float = 1e-4,
    v0: Tensor | None = None,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    basis_device: torch.device | str | None = None,
    basis_dtype: torch.dtype | str | None = None,
    rng: torch.Generator | int | None = None,
) -> Eigenpairs:
    """Return k eigenpairs of H.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
        The chains of a network are solved one after the other.
    k : int
        1 ≤ k ≤ D.
    which : {"LM", "LA", "SA", "BE"}, default="LA"
        As in :func:`flatmin.linalg.eigsh`.
    tol : float, default=1e-4
        Residual relative to max |λ|.
    v0 : Tensor of shape (D,), default=None
        Where Lanczos starts, such as the leading eigenvector at a θ nearby: the fewer
        products the closer it is. Without effect where H is dense.
    max_matvecs, max_basis, basis_device, basis_dtype : default=None
        As in :func:`flatmin.linalg.eigsh`: products at most, and what bounds the
        vectors that a search holds. Without effect where H is dense.
    rng : torch.Generator, int or None, default=None
        For Lanczos' start vector; None is random. A seed gives every chain the same
        one, a generator serves one chain after the other.

    Returns
    -------
    Eigenpairs

    Raises
    ------
    ValueError
        If k, ``v0`` or an argument of the search does not fit.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.curvature import hessian_eigenpairs
    >>> hessian_eigenpairs(risk, theta, 1, rng=0).eigenvalues
    tensor([4.], dtype=torch.float64)
    """
    theta = as_point(risk, theta)
    check_seed(rng)
    k = check_count("k", k, at_most=risk.n_params, limit="D")
    tol = check_positive("tol", tol)
    if v0 is not None:
        check_floating("v0", v0)
        v0 = as_direction(v0, "v0", (risk.n_params,), theta)
    search = search_arguments(
        max_matvecs=max_matvecs,
        max_basis=max_basis,
        basis_device=basis_device,
        basis_dtype=basis_dtype,
    )
    if isinstance(risk, AnalyticRisk):
        return _dense_eigenpairs(risk.hessian(theta), k, which, tol)
    search |= {"which": which, "tol": tol, "v0": v0, "rng": rng}
    if theta.ndim > 1:
        return _of_each_chain(
            lambda one: hessian_eigenpairs(risk, one, k, **search), theta
        )
    return eigsh(HessianOperator(risk, theta), k, **search)


def covariance_eigenpairs(
    risk: Risk,
    theta: Point,
    k: int,
    *,
    select: str | list[str] | None = None,
    preconditioner: Tensor | None = None,
    tol: float = 1e-4,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    basis_device: torch.device | str | None = None,
    basis_dtype: torch.dtype | str | None = None,
    rng: torch.Generator | int | None = None,
    verbose: bool = False,
) -> Eigenpairs:
    """Return the k largest eigenpairs of Σ over examples, divisor N.

    While the (N, D) matrix of the centred gradients is small enough to hold, from its
    Gram matrix, (N, N) or, where D ≤ N, (D, D). Else by Lanczos on products with Σ.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
        Chains of a network whose gradients are too many to hold are solved one after
        the other.
    k : int
        1 ≤ k ≤ min(D, N - 1).
    select : str or list of str, default=None
        Names of parameters or modules, to whose block of Σ to confine it; D is then
        their number. See :class:`RiskOperator`.
    preconditioner : Tensor of shape (D,), default=None
        The diagonal of P, of all parameters: then those of PΣP. See
        :class:`PreconditionedCovarianceOperator`.
    tol : float, default=1e-4
        Residual relative to the largest eigenvalue.
    max_matvecs, max_basis, basis_device, basis_dtype : default=None
        As in :func:`flatmin.linalg.eigsh`. Without effect where the Gram matrix is
        formed.
    rng : torch.Generator, int or None, default=None
        For Lanczos' start vector; None is random.
    verbose : bool, default=False
        Show a progress bar over Lanczos' products.

    Returns
    -------
    Eigenpairs

    Raises
    ------
    ValueError
        If k, ``preconditioner`` or an argument of the search does not fit.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.curvature import covariance_eigenpairs
    >>> covariance_eigenpairs(risk, theta, 1).eigenvalues  # (15 + √125)/2
    tensor([13.0902], dtype=torch.float64)
    """
    theta = as_point(risk, theta)
    check_seed(rng)
    tol = check_positive("tol", tol)
    operator = covariance_operator(risk, theta, preconditioner, select)
    size = operator.shape[-1]
    largest = min(size, risk.n_examples - 1)
    k = check_count("k", k, at_most=largest, limit="min(D, N - 1)")
    search = search_arguments(
        max_matvecs=max_matvecs,
        max_basis=max_basis,
        basis_device=basis_device,
        basis_dtype=basis_dtype,
    )
    search |= {"tol": tol, "rng": rng, "verbose": verbose}
    n_numbers = theta.numel() // risk.n_params * risk.n_examples * size
    if n_numbers > GRAM_LIMIT and theta.ndim > 1 and not isinstance(risk, AnalyticRisk):
        return _of_each_chain(
            lambda one: covariance_eigenpairs(
                risk,
                one,
                k,
                select=select,
                preconditioner=preconditioner,
                **search,
            ),
            theta,
        )
    if risk.n_examples * size > GRAM_LIMIT:
        return eigsh(operator, k, which="LA", **search)
    chunks = risk.per_example_gradients(theta)
    if preconditioner is not None:
        P = check_preconditioner(preconditioner, risk)
        chunks = (P * rows for rows in chunks)
    if operator.indices is not None:
        chunks = (rows[..., operator.indices] for rows in chunks)
    rows = torch.cat(list(chunks), dim=-2)
    rows = rows - rows.mean(-2, keepdim=True)
    return gram_eigenpairs(rows, 1 / risk.n_examples, k, tol)


def minibatch_eigenpairs(
    risk: Risk, theta: Point, k: int, *, batches: Tensor, tol: float = 1e-4
) -> Eigenpairs:
    """Return the k largest eigenpairs of m times the covariance of batch gradients.

    The covariance has ddof 1; times m it estimates N/(N-1) Σ when the batches are a
    random partition (appendix C of the paper).

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    k : int
        1 ≤ k ≤ min(D, b - 1).
    batches : Tensor of shape (\\*chains, b, m)
        Indices of examples.
    tol : float, default=1e-4
        For the ``converged`` flags.

    Returns
    -------
    Eigenpairs

    Raises
    ------
    ValueError
        If k does not fit.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.curvature import minibatch_eigenpairs
    >>> batches = torch.tensor([[0], [1], [2], [3]])
    >>> minibatch_eigenpairs(risk, theta, 1, batches=batches).eigenvalues  # 4/3 of Σ's
    tensor([17.4536], dtype=torch.float64)
    """
    theta = as_point(risk, theta)
    check_tensor("batches", batches, 2)
    batches = as_indices(batches, "batches", batches.ndim, risk.device)
    tol = check_positive("tol", tol)
    n_batches, batch_size = batches.shape[-2:]
    largest = min(risk.n_params, n_batches - 1)
    k = check_count("k", k, at_most=largest, limit="min(D, b - 1)")
    rows = risk.batch_gradients(theta, batches)
    rows = rows - rows.mean(-2, keepdim=True)
    return gram_eigenpairs(rows, batch_size / (n_batches - 1), k, tol)


def gram_eigenpairs(rows: Tensor, factor: float, k: int, tol: float) -> Eigenpairs:
    """Return the top pairs of c RᵀR from those of c RRᵀ, in float64."""
    if rows.shape[-1] <= rows.shape[-2]:
        wide = rows.double()
        matrix = factor * wide.mT @ wide
        return _dense_eigenpairs(matrix, k, "LA", tol, dtype=rows.dtype)
    gram = factor * (rows @ rows.mT).double()
    values, left = torch.linalg.eigh(gram)
    values, left = values[..., -k:].flip(-1), left[..., -k:].flip(-1)
    vectors = rows.mT.double() @ left
    # A Gram matrix squares the condition: orthonormalise what it gives.
    vectors, upper = torch.linalg.qr(vectors)
    flipped = upper.diagonal(dim1=-2, dim2=-1) < 0
    vectors = torch.where(flipped.unsqueeze(-2), -vectors, vectors)
    vectors = vectors.to(rows.dtype)
    products = factor * (rows.mT @ (rows @ vectors))
    errors = products.double() - values.unsqueeze(-2) * vectors.double()
    residuals = torch.linalg.vector_norm(errors, dim=-2)
    converged = residuals <= tol * values[..., :1]
    return Eigenpairs(values, vectors, residuals, converged, 0)


def _of_each_chain(solve: Callable[[Tensor], Eigenpairs], theta: Tensor) -> Eigenpairs:
    """Return the pairs of one chain after the other."""
    chains = theta.shape[:-1]
    found = [solve(one) for one in theta.reshape(-1, theta.shape[-1])]

    def stacked(name: str) -> Tensor:
        parts = torch.stack([getattr(pairs, name) for pairs in found])
        return parts.view(*chains, *parts.shape[1:])

    return Eigenpairs(
        stacked("eigenvalues"),
        stacked("eigenvectors"),
        stacked("residuals"),
        stacked("converged"),
        sum(pairs.n_matvecs for pairs in found),
    )


def _dense_eigenpairs(
    matrix: Tensor,
    k: int,
    which: Which,
    tol: float,
    *,
    dtype: torch.dtype | None = None,
) -> Eigenpairs:
    """Return pairs of a (batch of) matrix, in float64, by a dense solver."""
    dtype = matrix.dtype if dtype is None else dtype
    matrix = matrix.double()
    values, vectors = torch.linalg.eigh(matrix)
    wanted = order_eigenvalues(values, which, k)
    values = values.take_along_dim(wanted, -1)
    vectors = vectors.take_along_dim(wanted.unsqueeze(-2), -1)
    errors = matrix @ vectors - values.unsqueeze(-2) * vectors
    residuals = torch.linalg.vector_norm(errors, dim=-2)
    largest = values.abs().amax(-1, keepdim=True)
    return Eigenpairs(
        values, vectors.to(dtype), residuals, residuals <= tol * largest, 0
    )
