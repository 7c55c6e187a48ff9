"""Tr(A): exact where that is cheap, else an estimate with its error."""

from __future__ import annotations

from typing import Literal

import torch

from flatmin._utils.names import check_known
from flatmin._utils.numbers import check_accuracy
from flatmin._utils.progress import progress_bar
from flatmin._utils.random import check_seed, make_generator
from flatmin.linalg._dense import check_finite_products
from flatmin.linalg._estimate import Estimate
from flatmin.linalg._operator import (
    LinearOperator,
    check_one_matrix,
    check_operator,
    knows_its_trace,
)
from flatmin.linalg._orthogonal import dots
from flatmin.linalg._probed_estimate import probed_estimate
from flatmin.linalg._probes import spherical
from flatmin.linalg._sketch import SMALL, Sketch
from flatmin.linalg._unit_scale import UnitScaled
from flatmin.linalg._xtrace import xtrace

__all__ = ["trace"]


def trace(
    operator: LinearOperator,
    *,
    method: Literal["auto", "exact", "hutchinson", "xtrace"] = "auto",
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = None,
    verbose: bool = False,
) -> Estimate:
    """Return Tr(A) with its standard error.

    - ``"hutchinson"`` [1]_: the mean of zᵀAz over vectors z of random signs. Its
      variance is 2 (‖A‖²_F - Σ Aᵢᵢ²) for each product.
    - ``"xtrace"`` [2]_: the trace on the range of A times random vectors is exact, and
      each vector in turn estimates what the others leave out. Two products a vector;
      far better where few eigenvalues are large, and exact for a low rank. Keeps
      2 ``max_matvecs`` vectors in memory, or fewer that fit into 2²⁸ numbers. For
      D ≤ 10 the trace is exact.
    - ``"exact"``: the operator's own formula, or D products.

    The number of products is decided in a few stages, never at the first moment at
    which the error looks small, so that the error stays honest. Where ten products
    suffice, it is the error of ten draws: think of Student's distribution.

    Parameters
    ----------
    operator : LinearOperator
        Symmetric. Several matrices have exact traces only.
    method : {"auto", "exact", "hutchinson", "xtrace"}, default="auto"
        ``"auto"`` is exact for several matrices, for D ≤ ``max_matvecs`` and for
        operators that know their trace. Else ten probes of Hutchinson's decide whether
        his estimator will do with few more, or XTrace has to.
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
        less than 6, or an estimate is asked of several matrices.
    torch.linalg.LinAlgError
        If a product is not finite.

    References
    ----------
    .. [1] M. F. Hutchinson, "A stochastic estimator of the trace of the influence
       matrix for Laplacian smoothing splines", 1989,
       :doi:`10.1080/03610918908812806`.
    .. [2] E. N. Epperly, J. A. Tropp and R. J. Webber, "XTrace: Making the most of
       every sample in stochastic trace estimation", 2024, :doi:`10.1137/23M1548323`.

    Examples
    --------
    >>> from flatmin.linalg import DenseOperator
    >>> A = DenseOperator(torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    >>> trace(A).value
    tensor(6.)
    """
    check_known("method", method, ("auto", "exact", "hutchinson", "xtrace"))
    check_operator(operator)
    check_seed(rng)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    before, size = operator.n_matvecs, operator.shape[-1]
    batch = len(operator.shape) > 2
    whole = method == "xtrace" and size <= SMALL and not batch
    cheap = batch or size <= max_matvecs or knows_its_trace(operator)
    if method == "exact" or whole or (method == "auto" and cheap):
        value = operator.trace()
        check_finite_products(value)
        stderr = operator.trace_stderr()
        return Estimate(value, stderr, operator.n_matvecs - before)

    check_one_matrix(operator, f"trace with method={method!r}")
    generator = make_generator(rng, operator.device)
    unit = UnitScaled(operator)
    with progress_bar(max_matvecs, "trace", verbose=verbose) as bar:
        value, stderr = probed_estimate(
            unit,
            lambda z, Az: dots(z.unsqueeze(0), Az).squeeze(0),
            Sketch(unit, spherical),
            xtrace,
            method="sketch" if method == "xtrace" else method,
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
