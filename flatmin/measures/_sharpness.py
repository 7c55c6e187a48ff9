"""Expected sharpness: how much the risk rises under random perturbation."""

from __future__ import annotations

from typing import Any

import torch

from flatmin._utils.numbers import check_count, check_flag, check_positive
from flatmin._utils.random import check_seed, make_generator
from flatmin.curvature._finite import check_loss
from flatmin.curvature._point import Point, as_point
from flatmin.linalg import Estimate
from flatmin.measures._rounding import check_shift
from flatmin.risk import Risk

__all__ = ["adaptive_expected_sharpness", "expected_sharpness"]


def expected_sharpness(
    risk: Risk,
    theta: Point,
    *,
    sigma: float = 0.01,
    n_draws: int = 100,
    absolute: bool = False,
    rng: torch.Generator | int | None = 0,
) -> Estimate:
    """Return (1/M) Σⱼ L(θ + ξⱼ) - L(θ) with ξ ~ N(0, s² I).

    To second order (s²/2) Tr(H). It is not invariant to a reparametrisation: two
    networks with the same function can differ in it. A fixed ``rng`` seed means
    common random numbers: models of the same size meet the same ξ, and values
    between them are known better than each value.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    sigma : float, default=0.01
        s, in units of θ.
    n_draws : int, default=100
        M, at least 2.
    absolute : bool, default=False
        Average |ΔL| instead, as the authors' released code does.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.

    Returns
    -------
    Estimate
        In units of the loss. ``stderr``, of ddof 1, holds the rounding of L(θ) as
        well, since losses are subtracted.

    Raises
    ------
    ValueError
        If ``n_draws`` is too small, or ``sigma`` is, also beside the rounding of θ.
    FloatingPointError
        If the loss is not finite at θ or at a draw.

    References
    ----------
    B. Neyshabur et al., "Exploring generalization in deep learning", NeurIPS 2017,
    arXiv 1706.08947, equation 7; sections 4.2 and C of arXiv 1803.00195.

    Examples
    --------
    For a quadratic the second order is exact, here (0.1²/2) · 6 = 0.03:

    >>> from flatmin.risk import QuadraticRisk
    >>> A = torch.diag(torch.tensor([5.0, 1.0], dtype=torch.float64))
    >>> risk = QuadraticRisk(A, torch.zeros(1, 2, dtype=torch.float64))
    >>> theta = torch.zeros(2, dtype=torch.float64)
    >>> result = expected_sharpness(risk, theta, sigma=0.1, n_draws=4000)
    >>> abs(float(result) - 0.03) < 3 * float(result.stderr)
    True
    """
    options: Any = {"n_draws": n_draws, "absolute": absolute, "rng": rng}
    return _mean_rise(risk, theta, sigma, adaptive=False, **options)


def adaptive_expected_sharpness(
    risk: Risk,
    theta: Point,
    *,
    sigma: float = 0.05,
    n_draws: int = 100,
    absolute: bool = False,
    rng: torch.Generator | int | None = 0,
) -> Estimate:
    """Return (1/M) Σⱼ L(θ + |θ| ∘ ξⱼ) - L(θ) with ξ ~ N(0, s² I).

    To second order (s²/2) Σᵢ θᵢ² Hᵢᵢ. Each coordinate is perturbed in proportion to
    its size, so that rescaling coordinates by positive numbers without changing the
    function, as ReLU networks allow, leaves it unchanged: with a fixed seed, draw by
    draw. A coordinate at 0 is not perturbed.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    sigma : float, default=0.05
        s, relative to |θ|.
    n_draws : int, default=100
        M, at least 2.
    absolute : bool, default=False
        Average |ΔL| instead.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.

    Returns
    -------
    Estimate
        In units of the loss. ``stderr``, of ddof 1, holds the rounding of L(θ) as
        well, since losses are subtracted.

    Raises
    ------
    ValueError
        If ``n_draws`` is too small, or ``sigma`` is, also beside the rounding of θ.
    FloatingPointError
        If the loss is not finite at θ or at a draw.

    References
    ----------
    M. Andriushchenko et al., "A modern look at the relationship between sharpness and
    generalization", ICML 2023, arXiv 2302.07011, section 3.

    Examples
    --------
    At θ = (1, 2), A = diag(5, 1) and s = 0.1: (0.1²/2) (1 · 5 + 4 · 1) = 0.045.

    >>> from flatmin.risk import QuadraticRisk
    >>> A = torch.diag(torch.tensor([5.0, 1.0], dtype=torch.float64))
    >>> theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> risk = QuadraticRisk(A, torch.zeros(1, 2, dtype=torch.float64), theta)
    >>> result = adaptive_expected_sharpness(risk, theta, sigma=0.1, n_draws=4000)
    >>> abs(float(result) - 0.045) < 3 * float(result.stderr)
    True
    """
    options: Any = {"n_draws": n_draws, "absolute": absolute, "rng": rng}
    return _mean_rise(risk, theta, sigma, adaptive=True, **options)


def _mean_rise(
    risk: Risk,
    theta: Point,
    sigma: float,
    *,
    adaptive: bool,
    n_draws: int,
    absolute: bool,
    rng: torch.Generator | int | None,
) -> Estimate:
    sigma = check_positive("sigma", sigma)
    absolute = check_flag("absolute", absolute)
    n_draws = check_count("n_draws", n_draws, at_least=2)  # one has no spread
    check_seed(rng)
    theta = as_point(risk, theta)
    generator = make_generator(rng, risk.device)
    scale = theta.abs() if adaptive else None
    check_shift(theta, sigma, scale)
    base = check_loss("The loss L(θ)", risk.value(theta), "look at θ and the data")
    values = []
    for _ in range(n_draws):
        xi = torch.randn(
            theta.shape, generator=generator, dtype=theta.dtype, device=theta.device
        )
        if scale is not None:
            xi *= scale
        values.append(risk.value(theta + sigma * xi))
    losses = check_loss(
        "The loss of perturbed parameters", torch.stack(values), "lower sigma"
    )
    delta = losses - base
    if absolute:
        delta = delta.abs()
    # All differences share L(θ), so their spread does not show its rounding.
    rounding = torch.finfo(risk.dtype).eps * base.abs()
    stderr = torch.hypot(delta.std(0) / n_draws**0.5, rounding)
    return Estimate(delta.mean(0), stderr)
