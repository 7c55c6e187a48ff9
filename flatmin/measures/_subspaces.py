"""How two bases, or the subspaces that they span, lie to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin._utils.arrays import check_tensor
from flatmin._utils.numbers import check_count
from flatmin.measures._rounding import CLEAR

__all__ = [
    "cosines",
    "overlap",
    "principal_angles",
    "projection_residual",
    "random_projection_residual",
    "subspace_share",
]


def cosines(U: Tensor, V: Tensor) -> Tensor:
    """Return |uᵢᵀvᵢ| / (‖uᵢ‖ ‖vᵢ‖) column by column, equation 9.

    An eigenvector has no sign, hence the absolute value. Where eigenvalues lie close
    together the order of the vectors is chance: compare the spans then.

    Parameters
    ----------
    U : Tensor of shape (\\*chains, D, k)
        Columns are vectors.
    V : Tensor of shape (\\*chains, D, k)

    Returns
    -------
    Tensor of shape (\\*chains, k)
        In float64.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a column is 0 or not finite.

    References
    ----------
    Z. Zhu et al., arXiv 1803.00195.

    Examples
    --------
    >>> cosines(torch.tensor([[1.0], [0.0]]), torch.tensor([[-3.0], [4.0]]))
    tensor([0.6000], dtype=torch.float64)
    """
    _check_bases(U=U, V=V)
    if U.shape[-1] != V.shape[-1]:
        raise ValueError(
            "cosines compares column by column and needs as many columns. Got "
            f"{U.shape[-1]} and {V.shape[-1]}."
        )
    U, V = _unit_columns(U, "U"), _unit_columns(V, "V")
    return (U * V).sum(-2).abs().clamp(max=1)


def projection_residual(A: Tensor, B: Tensor) -> Tensor:
    """Return e(A, B) = ‖A - P_B A‖²_F, P_B = B (BᵀB)⁻¹ Bᵀ, equations 13 and 18 to 20.

    For orthonormal bases of k columns each it is k - ‖AᵀB‖²_F, symmetric and between
    0 (the same span) and k (orthogonal spans). Two random spans have about
    :func:`random_projection_residual`. For other bases it depends on the lengths of
    A's columns, not on B's.

    Parameters
    ----------
    A : Tensor of shape (\\*chains, D, k)
    B : Tensor of shape (\\*chains, D, j)
        Linearly independent columns.

    Returns
    -------
    Tensor of shape (\\*chains)
        In float64.

    Raises
    ------
    ValueError
        If ``A`` is not finite, or the columns of ``B`` are not independent.

    References
    ----------
    Z. Zhu et al., arXiv 1803.00195.

    Examples
    --------
    >>> A = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    >>> B = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
    >>> projection_residual(A, B)
    tensor(1., dtype=torch.float64)
    """
    _check_bases(A=A, B=B)
    if not bool(A.isfinite().all()):
        raise ValueError("A must be finite. Got NaN or infinity in it.")
    A, Q = A.double(), _orthonormal(B, "B")
    return (A - Q @ (Q.mT @ A)).square().sum((-2, -1))


def random_projection_residual(k: int, n_params: int) -> float:
    """Return k (1 - k/D), the mean of e over two random k-dimensional subspaces.

    Parameters
    ----------
    k : int
    n_params : int
        D.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If k does not fit.

    Examples
    --------
    >>> random_projection_residual(20, 11330)
    19.9647
    """
    n_params = check_count("n_params", n_params)
    k = check_count("k", k, at_most=n_params, limit="D")
    return k * (1 - k / n_params)


def overlap(U: Tensor, V: Tensor) -> Tensor:
    """Return 1 - e/k, the mean squared cosine from the span of U to that of V.

    Of the spans alone: bases are made orthonormal first. 1 if V's span holds U's, 0 if
    they are orthogonal, k/D on average for random spans of k columns each.

    Parameters
    ----------
    U : Tensor of shape (\\*chains, D, k)
        Linearly independent columns.
    V : Tensor of shape (\\*chains, D, j)
        Linearly independent columns.

    Returns
    -------
    Tensor of shape (\\*chains)
        In float64.

    References
    ----------
    G. Gur-Ari, D. Roberts and E. Dyer, "Gradient descent happens in a tiny subspace",
    arXiv 1812.04754.

    Examples
    --------
    >>> overlap(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
    tensor(0.5000, dtype=torch.float64)
    """
    _check_bases(U=U, V=V)
    Q = _orthonormal(U, "U")
    return 1 - projection_residual(Q, V) / Q.shape[-1]


def principal_angles(U: Tensor, V: Tensor) -> Tensor:
    """Return the angles between two subspaces in radians, the smallest first.

    Their cosines are the singular values of QᵤᵀQᵥ for orthonormal bases; small angles,
    which the cosine does not resolve, come from their sines.

    Parameters
    ----------
    U : Tensor of shape (\\*chains, D, k)
        Linearly independent columns.
    V : Tensor of shape (\\*chains, D, j)
        Linearly independent columns.

    Returns
    -------
    Tensor of shape (\\*chains, min(k, j))
        In float64.

    References
    ----------
    A. Knyazev and M. Argentati, "Principal angles between subspaces in an A-based
    scalar product", 2002, :doi:`10.1137/S1064827500377332`.

    Examples
    --------
    >>> principal_angles(torch.eye(3)[:, :1], torch.tensor([[1.0], [1.0], [0.0]]))
    tensor([0.7854], dtype=torch.float64)
    """
    _check_bases(U=U, V=V)
    if U.shape[-1] < V.shape[-1]:
        U, V = V, U
    Q, R = _orthonormal(U, "U"), _orthonormal(V, "V")
    inner = Q.mT @ R
    cosine = torch.linalg.svdvals(inner).clamp(max=1)
    sine = torch.linalg.svdvals(R - Q @ inner).flip(-1).clamp(max=1)
    return torch.where(cosine.square() < 0.5, cosine.acos(), sine.asin())


def subspace_share(v: Tensor, U: Tensor) -> Tensor:
    """Return ‖P_U v‖² / ‖v‖², the share of a vector in the span of U.

    For v = g₀ and the k leading eigenvectors of H: how much of the gradient lies in
    the top eigenspace. A random vector has k/D.

    Parameters
    ----------
    v : Tensor of shape (\\*chains, D)
        Not 0.
    U : Tensor of shape (\\*chains, D, k)
        Linearly independent columns.

    Returns
    -------
    Tensor of shape (\\*chains)
        In float64.

    Raises
    ------
    ValueError
        If ``v`` is 0 or not finite, or the columns of ``U`` are not independent.

    References
    ----------
    G. Gur-Ari, D. Roberts and E. Dyer, "Gradient descent happens in a tiny subspace",
    arXiv 1812.04754.

    Examples
    --------
    >>> subspace_share(torch.tensor([3.0, 4.0]), torch.tensor([[2.0], [0.0]]))
    tensor(0.3600, dtype=torch.float64)
    """
    check_tensor("v", v, 1)
    _check_bases(v=v.unsqueeze(-1), U=U)
    v = v.double()
    norms = torch.linalg.vector_norm(v, dim=-1)
    if not bool(((norms > 0) & norms.isfinite()).all()):
        raise ValueError(
            "A share of a vector needs one that is finite and not 0. Got a vector of "
            f"norm {float(norms[~((norms > 0) & norms.isfinite())].flatten()[0])}."
        )
    v = v / norms.unsqueeze(-1)
    inside = (_orthonormal(U, "U").mT @ v.unsqueeze(-1)).squeeze(-1)
    return inside.square().sum(-1)


def _check_bases(**bases: Tensor) -> None:
    for name, basis in bases.items():
        check_tensor(name, basis)
    fit = all(basis.ndim > 1 and basis.numel() > 0 for basis in bases.values())
    if not fit or len({basis.shape[-2] for basis in bases.values()}) > 1:
        raise ValueError(
            f"{' and '.join(bases)} must be matrices of one or more columns of one "
            "size D. Got shapes "
            f"{' and '.join(str(tuple(basis.shape)) for basis in bases.values())}."
        )


def _unit_columns(basis: Tensor, name: str) -> Tensor:
    """Return the columns at length 1, in float64."""
    sizes = torch.linalg.vector_norm(basis.double(), dim=-2, keepdim=True)
    fit = (sizes > 0) & sizes.isfinite()
    if not bool(fit.all()):
        raise ValueError(
            f"The columns of {name} must be finite and not 0. Got a column of norm "
            f"{float(sizes[~fit].flatten()[0])}; leave it out."
        )
    return basis.double() / sizes


def _orthonormal(basis: Tensor, name: str) -> Tensor:
    """Return an orthonormal basis of the span, in float64."""
    rows, columns = basis.shape[-2:]
    Q, R = torch.linalg.qr(_unit_columns(basis, name))
    # The columns have length 1, so the diagonal of R says how far each lies from the
    # span of those before it.
    sizes = R.diagonal(dim1=-2, dim2=-1).abs()
    if columns > rows or bool((sizes <= CLEAR * _eps(basis)).any()):
        raise ValueError(
            "The columns of a basis must be linearly independent. Got "
            f"{columns} columns of {rows} numbers that are not; leave out the columns "
            "that the others span."
        )
    return Q


def _eps(basis: Tensor) -> float:
    exact = torch.float64  # of integers, which are converted to it
    return torch.finfo(basis.dtype if basis.is_floating_point() else exact).eps
