"""diag(A): exact where that is cheap, else an estimate with the error of each entry."""

from __future__ import annotations

from typing import Literal

import torch

from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_accuracy
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import check_seed, make_generator
from flatmin.linalg._dense import check_finite_products
from flatmin.linalg._estimate import Estimate
from flatmin.linalg._operator import LinearOperator, check_one_matrix
from flatmin.linalg._probed_estimate import probed_estimate
from flatmin.linalg._probes import rademacher
from flatmin.linalg._sketch import SMALL, Sketch
from flatmin.linalg._unit_scale import UnitScaled
from flatmin.linalg._xdiag import xdiag

__all__ = ["diagonal"]


def diagonal(
    operator: LinearOperator,
    *,
    method: Literal["auto", "exact", "hutchinson", "xdiag"] = "auto",
    rtol: float = 0.05,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = None,
    verbose: bool = False,
) -> Estimate:
    """Return diag(A) with the standard error of every entry.

    - ``"hutchinson"`` [1]_: the mean of z ∘ Az over vectors z of random signs. The
      variance of entry i is the sum of the other Aᵢⱼ² for each product.
    - ``"xdiag"`` [2]_: the diagonal on the range of A times random vectors is exact,
      and each vector in turn estimates what the others leave out. Two products a
      vector; better where few eigenvalues are large, and exact for a low rank. Keeps
      2 ``max_matvecs`` vectors in memory, or fewer that fit into 2²⁸ numbers. For
      D ≤ 10 the diagonal is exact.
    - ``"exact"``: D products.

    Parameters
    ----------
    operator : LinearOperator of shape (D, D)
        Symmetric.
    method : {"auto", "exact", "hutchinson", "xdiag"}, default="auto"
        ``"auto"`` is exact for D ≤ ``max_matvecs``; else ten probes decide whether
        the plain mean will do with few more, or XDiag has to.
    rtol : float, default=0.05
        Norm of the errors to reach, relative to the norm of the diagonal.
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

    References
    ----------
    .. [1] C. Bekas, E. Kokiopoulou and Y. Saad, "An estimator for the diagonal of a
       matrix", 2007, :doi:`10.1016/j.apnum.2007.01.003`.
    .. [2] E. N. Epperly, J. A. Tropp and R. J. Webber, "XTrace: Making the most of
       every sample in stochastic trace estimation", 2024, :doi:`10.1137/23M1548323`.

    Examples
    --------
    >>> from flatmin.linalg import DenseOperator
    >>> diagonal(DenseOperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))).value
    tensor([2., 3.])
    """
    check_one_matrix(operator, "diagonal")
    check_seed(rng)
    check_known("method", method, ("auto", "exact", "hutchinson", "xdiag"))
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    before = operator.n_matvecs
    size = operator.shape[-1]
    whole = method == "xdiag" and size <= SMALL
    if method == "exact" or whole or (method == "auto" and size <= max_matvecs):
        value = operator.to_dense().diagonal()
        check_finite_products(value)
        exact = torch.zeros_like(value)
        return Estimate(value, exact, operator.n_matvecs - before)

    generator = make_generator(rng, operator.device)
    unit = UnitScaled(operator)
    with progress_bar(max_matvecs, "diagonal", verbose=verbose) as bar:
        value, stderr = probed_estimate(
            unit,
            lambda z, Az: z.double() * Az.double(),
            Sketch(unit, rademacher),
            xdiag,
            method="sketch" if method == "xdiag" else method,
            rtol=rtol,
            max_matvecs=max_matvecs,
            rng=generator,
            bar=bar,
        )
    check_finite_products(value)
    return Estimate(
        (unit.scale * value).to(operator.dtype),
        (unit.scale * stderr).to(operator.dtype),
        operator.n_matvecs - before,
    )
