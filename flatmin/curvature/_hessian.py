"""The Hessian and the generalised Gauss-Newton matrix of a risk at a point."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatmin._utils.numbers import (
    MIN_MATVECS,
    check_accuracy,
    check_count,
    check_flag,
    check_positive,
)
from flatmin._utils.random import check_seed, make_generator
from flatmin.curvature._finite import check_loss, in_dtype
from flatmin.curvature._point import Point, as_point
from flatmin.curvature._risk_operator import LinearizedOperator
from flatmin.linalg import Estimate, trace
from flatmin.risk import Risk

__all__ = [
    "FEW_OUTPUTS",
    "GGNOperator",
    "HessianOperator",
    "ggn_trace",
    "hessian_trace",
]

_SWEEPS_AT_ONCE = 8  # they share a run forward, and their cotangents are held
_BEYOND = 1e9  # in place of an infinite ratio of errors
# The spread between sweeps is taken for the error from this many degrees of freedom
# on. With fewer, sweeps stop where the spread is small by chance, and the error is too
# small (seen on trained networks of 5 and 10 outputs).
_LEAST_FREEDOM = 60
# Up to this many outputs Tr(G) is exact, by a sweep for each: the signs of two sweeps
# agree in one of 2ᶜ⁻¹ pairs, and then there is no spread.
FEW_OUTPUTS = 4


class HessianOperator(LinearizedOperator):
    """H = ∇²L(θ) at one θ, known by its products.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
        Copied. The first product prepares it for the others.
    select : str or list of str, default=None
        See :class:`RiskOperator`.
    n_products : int, default=None
        How many will be asked for, if that is known; see ``linearize`` of the risk.

    Examples
    --------
    >>> from flatmin.risk import LinearRegressionRisk
    >>> risk = LinearRegressionRisk(torch.tensor([[1.0], [3.0]]), torch.zeros(2))
    >>> HessianOperator(risk, torch.zeros(1)) @ torch.ones(1)
    tensor([10.])
    """

    def _product(self, v: Tensor) -> Tensor:
        product: Tensor = self._point.hvp(v)
        return product


class GGNOperator(LinearizedOperator):
    """G = (1/N) Σ Jᵢᵀ Hᵢ Jᵢ + λI at one θ, known by its products.

    Hᵢ is the Hessian of ℓ̃ᵢ in the network's output, λ that of a penalty of the risk.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
        Copied. The first product prepares it for the others.
    select : str or list of str, default=None
        See :class:`RiskOperator`.
    n_products : int, default=None
        How many will be asked for, if that is known; see ``linearize`` of the risk.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.curvature import GGNOperator
    >>> GGNOperator(risk, theta).matvec(torch.ones(2))
    tensor([4., 1.])
    """

    def _product(self, v: Tensor) -> Tensor:
        product: Tensor = self._point.ggn(v)
        return product


def hessian_trace(
    risk: Risk,
    theta: Point,
    *,
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = None,
) -> Estimate:
    """Return Tr(H): exact for small D, else to a relative standard error.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    rtol : float, default=0.02
        Relative standard error to reach.
    max_matvecs : int, default=200
        Products at most; see :func:`flatmin.linalg.trace`.
    rng : torch.Generator, int or None, default=None
        For the probes; None is random.

    Returns
    -------
    Estimate

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.curvature import hessian_trace
    >>> hessian_trace(risk, theta)
    Estimate(value=5, stderr=0, n_matvecs=2)
    """
    theta = as_point(risk, theta)
    check_seed(rng)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    operator = HessianOperator(risk, theta, n_products=max_matvecs)
    return trace(operator, rtol=rtol, max_matvecs=max_matvecs, rng=rng)


def ggn_trace(
    risk: Risk,
    theta: Point,
    *,
    rtol: float = 0.02,
    max_sweeps: int = 32,
    penalty: bool = True,
    rng: torch.Generator | int | None = None,
) -> Estimate:
    """Return Tr(G) = E[(1/N) Σ ‖Jᵢᵀ Sᵢ zᵢ‖²] + λD.

    A sweep over the data gives N independent estimates. After two, sweeps are added
    until the standard error of the mean is at most ``rtol`` times the value. More are
    added where few examples hold most of the trace, since the spread then says little
    of the error. If that takes more sweeps than there are outputs, and ``max_sweeps``
    allows it, Tr(G) is computed exactly, by a sweep for each output. Up to four
    outputs, and an analytic risk, are exact at once. Under ``batch_norm="batch"`` an
    example has no part of its own in G: the trace is then that of
    :func:`flatmin.linalg.trace`, by ``max_sweeps`` products with G at most, or six.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    rtol : float, default=0.02
        Relative standard error to reach.
    max_sweeps : int, default=32
        At least 2, since the error is the spread between sweeps. Up to four outputs
        take one sweep each, also beyond it. ``stderr`` of the result tells what was
        reached; of few examples and few sweeps it is itself rough.
    penalty : bool, default=True
        False leaves λD out: with a likelihood that is the trace of the Fisher matrix.
    rng : torch.Generator, int or None, default=None
        For the signs; None is random.

    Returns
    -------
    Estimate
        ``n_matvecs`` counts sweeps, or products.

    Raises
    ------
    ValueError
        If ``max_sweeps`` is less than 2.
    FloatingPointError
        If the trace of an example is not finite.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.curvature import ggn_trace
    >>> float(ggn_trace(risk, theta, rng=0))
    5.0
    """
    theta = as_point(risk, theta)
    generator = make_generator(rng, risk.device)
    max_sweeps = check_count("max_sweeps", max_sweeps, at_least=2)
    rtol = check_positive("rtol", rtol, or_zero=True)
    prior = risk.l2 * risk.n_params
    added = prior if check_flag("penalty", penalty) else 0.0
    if getattr(risk, "batch_norm", None) == "batch":
        most = max(max_sweeps, MIN_MATVECS)
        operator = GGNOperator(risk, theta, n_products=most)
        found = trace(operator, rtol=rtol, max_matvecs=most, rng=generator)
        return Estimate(found.value - prior + added, found.stderr, found.n_matvecs)
    exact = risk.n_outputs
    if exact <= FEW_OUTPUTS:
        return _exact_ggn_trace(risk, theta, exact, added)
    # The signs of two sweeps are independent, the examples are the same ones: the
    # error is the spread between sweeps of one example, over N and over sweeps.
    sweeps = _checked(risk.gauss_newton_traces(theta, generator, n_sweeps=2))
    while True:
        n_sweeps = len(sweeps)
        stderr = (sweeps.var(0).mean(-1) / n_sweeps / risk.n_examples).sqrt()
        value = sweeps.mean(0).mean(-1) + added
        ratios = (stderr / (rtol * value.abs())).nan_to_num(0.0, posinf=_BEYOND)
        # A standard error falls with the root of the number of sweeps.
        missing = n_sweeps * (float(ratios.max()) ** 2 - 1)
        needed = _LEAST_FREEDOM / _effective_number(sweeps) - (n_sweeps - 1)
        missing = max(missing, needed)
        if missing <= 0:
            break
        if n_sweeps + exact <= max_sweeps and missing > exact:
            return _exact_ggn_trace(risk, theta, n_sweeps + exact, added)
        if n_sweeps >= max_sweeps:
            break
        more = math.ceil(min(missing, max_sweeps - n_sweeps, _SWEEPS_AT_ONCE))
        further = risk.gauss_newton_traces(theta, generator, n_sweeps=more)
        sweeps = torch.cat([sweeps, _checked(further)])
    return Estimate(
        in_dtype("Tr(G)", value, risk.dtype), stderr.to(risk.dtype), n_sweeps
    )


def _exact_ggn_trace(
    risk: Risk, theta: Tensor, n_sweeps: int, added: float
) -> Estimate:
    traces = _checked(risk.gauss_newton_traces(theta))
    value = in_dtype("Tr(G)", traces.mean(-1) + added, risk.dtype)
    return Estimate(value, torch.zeros_like(value), n_sweeps)


def _effective_number(sweeps: Tensor) -> float:
    """Return how many equal examples would spread as these; 1 at least."""
    # An example's variance is of the size of its squared trace, so squares are the
    # weights. From few sweeps the mean is known better than the variance.
    means = sweeps.mean(0)
    squares = (means / means.amax(-1, keepdim=True)).square()
    number = squares.sum(-1).square() / squares.square().sum(-1)
    return float(number.nan_to_num(1.0).min())


def _checked(traces: Tensor) -> Tensor:
    return check_loss("Tr(G) of an example", traces, "look at θ and at these examples")
