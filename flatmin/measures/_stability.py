"""Whether a minimum is one that (stochastic) gradient descent can stay at."""

from __future__ import annotations

import math
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from flatmin._utils.numbers import check_count, check_positive
from flatmin._utils.quiet import ignored
from flatmin._utils.random import check_seed, make_generator
from flatmin.curvature import HessianOperator
from flatmin.curvature._finite import check_finite
from flatmin.curvature._point import Point, as_one_point, as_point
from flatmin.linalg import Estimate, FunctionOperator, eigsh
from flatmin.measures._curvature_sharpness import max_eigenvalue
from flatmin.measures._estimate import exact
from flatmin.measures._rounding import CLEAR
from flatmin.risk import Risk

__all__ = ["edge_of_stability", "non_uniformity", "non_uniformity_bound"]


def edge_of_stability(
    risk: Risk,
    theta: Point,
    *,
    lr: float,
    tol: float = 1e-4,
    rng: torch.Generator | int | None = 0,
) -> Estimate:
    """Return λ₁ η / 2: below 1 gradient descent is linearly stable at a minimum.

    Full-batch gradient descent tends to drive it up to 1 and hover there. SGD needs
    more than that: see :func:`non_uniformity`. Momentum and preconditioning move the
    edge.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    lr : float
        η.
    tol : float, default=1e-4
        Residual of the eigenpair, relative to max |λ|.
    rng : torch.Generator, int or None, default=0
        For Lanczos' start vector.

    Returns
    -------
    Estimate
        ``stderr`` is 0, or NaN where the pair of λ₁ has not converged.

    Raises
    ------
    ValueError
        If ``lr`` or ``tol`` is not positive.

    References
    ----------
    J. Cohen et al., "Gradient descent on neural networks typically occurs at the edge
    of stability", ICLR 2021, arXiv 2103.00065.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([5.0, 1.0])), torch.zeros(1, 2))
    >>> float(edge_of_stability(risk, torch.zeros(2), lr=0.2))
    0.5
    """
    check_seed(rng)
    lr = check_positive("lr", lr)
    tol = check_positive("tol", tol)
    theta = as_point(risk, theta)
    sharpness = max_eigenvalue(risk, theta, tol=tol, rng=rng)
    scale = lr / 2
    return Estimate(
        scale * sharpness.value, scale * sharpness.stderr, sharpness.n_matvecs
    )


def non_uniformity(
    risk: Risk,
    theta: Point,
    *,
    tol: float = 1e-3,
    rng: torch.Generator | int | None = 0,
) -> Estimate:
    """Return s = λ_max((1/N) Σ Hᵢ² - H²)^(1/2), how much the Hessians Hᵢ differ.

    A penalty (λ/2)‖θ‖² of the risk is in none of the Hᵢ, and H is their mean here.

    Near a minimum at which all gᵢ vanish, SGD with m of N examples, drawn without
    replacement, multiplies the second moment of θ - θ* by
    (1 - ηH)² + η² (N - m)/(m(N - 1)) ((1/N) Σ Hᵢ² - H²) a step. It is stable only if
    λ₁ ≤ 2/η and s is at most :func:`non_uniformity_bound`, and both are not sufficient.

    A product with the matrix takes two Hessian products of every example and two of H;
    some 20 are taken. It is a difference, and what is below its rounding is 0, with
    √(30 ε) times the root of the larger term for ``stderr``: about 2e-3 λ₁ in float32
    and 8e-8 λ₁ in float64. One example has s = 0.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (D,)
    tol : float, default=1e-3
        Residual of the eigenpair, relative to s².
    rng : torch.Generator, int or None, default=0
        For Lanczos' start vector.

    Returns
    -------
    Estimate
        In units of H; where s² is more than rounding, ``stderr`` is what the rounding
        of λv takes from H v - λv, 0 without a penalty. It is NaN where the pair of s²
        has not converged.

    Raises
    ------
    ValueError
        If ``tol`` is not positive.
    FloatingPointError
        If a product is not finite.

    References
    ----------
    L. Wu, C. Ma and W. E, "How SGD selects the global minima in over-parameterized
    learning: A dynamical stability perspective", NeurIPS 2018, section 3.

    Examples
    --------
    Hᵢ = 2xᵢ² = 2, 18: mean 10, standard deviation 8.

    >>> from flatmin.risk import LinearRegressionRisk
    >>> risk = LinearRegressionRisk(torch.tensor([[1.0], [3.0]]), torch.zeros(2))
    >>> float(non_uniformity(risk, torch.zeros(1)))
    8.0
    """
    check_seed(rng)
    tol = check_positive("tol", tol)
    theta = as_one_point(risk, theta, "non_uniformity")
    if risk.n_examples == 1:
        return exact(torch.zeros((), device=risk.device))
    hessian = HessianOperator(risk, theta)
    largest = torch.zeros((), dtype=torch.float64, device=risk.device)

    def product(v: Tensor) -> Tensor:
        nonlocal largest
        squares = risk.squared_hessian_product(theta, v)
        check_finite("A product with (1/N) Σ Hᵢ²", squares, risk)
        norm = torch.linalg.vector_norm
        largest = torch.maximum(largest, norm(squares.double()) / norm(v.double()))
        return squares - mean(mean(v))

    def mean(v: Tensor) -> Tensor:
        return hessian.matvec(v) - risk.l2 * v  # of the Hᵢ, which hold no penalty

    operator = FunctionOperator(
        product, risk.n_params, dtype=risk.dtype, device=risk.device
    )
    # Rounding is not symmetric: of a matrix that is no more, there is nothing to warn.
    with ignored(ConvergenceWarning):
        pair = eigsh(operator, 1, tol=tol, rng=make_generator(rng, risk.device))
    square = pair.eigenvalues[0]
    eps = torch.finfo(risk.dtype).eps
    # H v - λv is off by some ε λ‖v‖, and (H - λ)² v by twice that times ‖H - λ‖.
    off_by_penalty = 2 * eps * risk.l2 * largest.sqrt()
    rounding = CLEAR * (eps * largest + off_by_penalty)
    if bool(square > rounding):
        off = float(pair.residuals / square)
        # A tol below the rounding of the products, where D of them gave the matrix.
        rounded = off <= 100 * eps
        rounded = rounded and pair.n_matvecs == risk.n_params
        if not (bool(pair.converged) or rounded):
            warnings.warn(
                f"s² has not converged to tol={tol:g} within {pair.n_matvecs} products "
                f"(relative residual {off:.1e}): it lies close to others, or the "
                "Hessians Hᵢ are not symmetric. Raise tol, or take float64.",
                ConvergenceWarning,
                stacklevel=2,
            )
            return Estimate(square.sqrt(), square * torch.nan, pair.n_matvecs)
        s = square.sqrt()
        return Estimate(s, off_by_penalty / (2 * s), pair.n_matvecs)
    return Estimate(torch.zeros_like(square), rounding.sqrt(), pair.n_matvecs)


def non_uniformity_bound(lr: float, batch_size: int, n_examples: int) -> float:
    """Return (1/η) √(m(N - 1)/(N - m)), above which s makes SGD unstable.

    Parameters
    ----------
    lr : float
        η.
    batch_size : int
        m, drawn without replacement; N is gradient descent and has no bound.
    n_examples : int
        N.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If ``lr`` is not positive, or the batch does not fit.

    Examples
    --------
    >>> non_uniformity_bound(0.1, 4, 100)
    20.3101
    """
    lr = check_positive("lr", lr)
    n_examples = check_count("n_examples", n_examples)
    batch_size = check_count("batch_size", batch_size, at_most=n_examples, limit="N")
    if batch_size == n_examples:
        return math.inf
    ratio = batch_size * (n_examples - 1) / (n_examples - batch_size)
    return math.sqrt(ratio) / lr
