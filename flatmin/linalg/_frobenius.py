"""‖A‖_F: exact where that is cheap, else an estimate with its error."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_accuracy
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import check_seed, make_generator
from flatmin.linalg._dense import check_finite_products
from flatmin.linalg._estimate import Estimate
from flatmin.linalg._operator import LinearOperator, check_one_matrix
from flatmin.linalg._probes import rademacher
from flatmin.linalg._running_mean import RunningMean
from flatmin.linalg._unit_scale import UnitScaled

__all__ = ["frobenius_norm"]


def frobenius_norm(
    operator: LinearOperator,
    *,
    method: Literal["auto", "exact", "hutchinson"] = "auto",
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = None,
    verbose: bool = False,
) -> Estimate:
    """Return ‖A‖_F = (Σ Aᵢⱼ²)^(1/2) with its standard error.

    ‖A‖²_F is the mean of ‖Az‖² over vectors z of random signs, which is Hutchinson's
    estimator of Tr(A²). The error of the root follows from that of the square by its
    derivative, as does a bias of -stderr² / (2 value), which is left in.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        Symmetric.
    method : {"auto", "exact", "hutchinson"}, default="auto"
        ``"exact"`` takes D products, ``"auto"`` does so for D ≤ ``max_matvecs``.
    rtol : float, default=0.02
        Relative standard error to reach.
    max_matvecs : int, default=200
        Products at most (of ``"exact"`` there are D); the result's ``stderr`` tells
        what was reached.
    rng : torch.Generator, int or None, default=None
        For the probes; None is random.
    verbose : bool, default=False
        Show a progress bar over ``max_matvecs``.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If ``method`` is unknown, ``rtol`` is negative or not finite, ``max_matvecs`` is
        less than 6 or the operator holds several matrices.
    torch.linalg.LinAlgError
        If a product is not finite.

    Examples
    --------
    >>> from flatmin.linalg import DenseOperator
    >>> frobenius_norm(DenseOperator(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))).value
    tensor(5.)
    """
    check_one_matrix(operator, "frobenius_norm")
    check_seed(rng)
    check_known("method", method, ("auto", "exact", "hutchinson"))
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    before = operator.n_matvecs
    unit = UnitScaled(operator)
    if method == "exact" or (method == "auto" and operator.shape[-1] <= max_matvecs):
        norm = torch.linalg.matrix_norm(unit.to_dense().double())
        check_finite_products(norm)
        value = (unit.scale * norm).to(operator.dtype)
        exact = torch.zeros_like(value)
        return Estimate(value, exact, operator.n_matvecs - before)

    generator = make_generator(rng, operator.device)
    squares = RunningMean()
    with progress_bar(max_matvecs, "Frobenius norm", verbose=verbose) as bar:

        def draw() -> Tensor:
            product = unit.matvec(rademacher(operator, generator))
            bar.update()
            norm: Tensor = torch.linalg.vector_norm(product, dtype=torch.float64)
            return norm.square()

        squares.draw_until(draw, 2 * rtol, max_matvecs)
    value = squares.mean.sqrt()
    check_finite_products(value)
    stderr = torch.where(value == 0, 0.0, squares.stderr / (2 * value))
    return Estimate(
        (unit.scale * value).to(operator.dtype),
        (unit.scale * stderr).to(operator.dtype),
        operator.n_matvecs - before,
    )
