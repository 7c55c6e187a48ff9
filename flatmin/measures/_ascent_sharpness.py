"""How much the risk rises by one step of steepest ascent."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin._utils.numbers import check_positive
from flatmin.curvature._finite import check_finite, check_loss
from flatmin.curvature._point import Point, as_point
from flatmin.linalg import Estimate
from flatmin.measures._estimate import exact
from flatmin.measures._rounding import CLEAR, nearby
from flatmin.risk import Risk

__all__ = ["asam_sharpness", "sam_sharpness"]


def sam_sharpness(risk: Risk, theta: Point, *, rho: float = 0.05) -> Estimate:
    """Return L(θ + r g₀/‖g₀‖) - L(θ).

    The value that sharpness-aware minimisation descends on: one step to the border of
    the ball, a lower bound on max L(θ + ε) - L(θ) over ‖ε‖ ≤ r that is close for small
    r and a gradient that does not vanish. At g₀ = 0 there is no step, and the value is
    0 however sharp it is; where what is left of the gradient is rounding, the direction
    is chance, and it is refused. It is not invariant to a reparametrisation.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    rho : float, default=0.05
        r, in units of θ.

    Returns
    -------
    Estimate
        In units of the loss.

    Raises
    ------
    ValueError
        If ``rho`` is not positive, or g₀ or the rise is rounding and not 0.
    FloatingPointError
        If the loss or the gradient is not finite.

    References
    ----------
    P. Foret et al., "Sharpness-aware minimization for efficiently improving
    generalization", ICLR 2021, arXiv 2010.01412.

    Examples
    --------
    At θ = (1, 0) of ½ (5 x² + y²), a step of 0.1: ½ · 5 · (1.1² - 1) = 0.525.

    >>> from flatmin.risk import QuadraticRisk
    >>> A = torch.diag(torch.tensor([5.0, 1.0]))
    >>> risk = QuadraticRisk(A, torch.zeros(1, 2))
    >>> float(sam_sharpness(risk, torch.tensor([1.0, 0.0]), rho=0.1))
    0.525
    """
    rho = check_positive("rho", rho)
    theta = as_point(risk, theta)
    return _rise(risk, theta, torch.ones_like(theta), rho)


def asam_sharpness(
    risk: Risk, theta: Point, *, rho: float = 0.5, eta: float = 0.0
) -> Estimate:
    """Return L(θ + r T² g₀/‖T g₀‖) - L(θ) with T = diag(|θ| + η).

    One step of steepest ascent in the norm ‖T⁻¹ε‖ ≤ r. With η = 0 it is invariant to
    rescaling coordinates by positive numbers without changing the function, as ReLU
    networks allow. The authors' code has η = 0.01 and T = 1 on biases, which gives
    that up in part. As :func:`sam_sharpness`, it is the value after one step.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    rho : float, default=0.5
        r, relative to |θ|.
    eta : float, default=0.0
        η, in units of θ; above 0 coordinates at 0 move too.

    Returns
    -------
    Estimate
        In units of the loss.

    Raises
    ------
    ValueError
        If ``rho`` is not positive, ``eta`` is negative, or T g₀ or the rise is
        rounding and not 0.
    FloatingPointError
        If the loss or the gradient is not finite.

    References
    ----------
    J. Kwon et al., "ASAM: Adaptive sharpness-aware minimization for scale-invariant
    learning of deep neural networks", ICML 2021, arXiv 2102.11600.

    Examples
    --------
    At θ = (2, 0) of ½ (5 x² + y²), a step of 0.1 · 2: ½ · 5 · (2.2² - 2²) = 2.1.

    >>> from flatmin.risk import QuadraticRisk
    >>> A = torch.diag(torch.tensor([5.0, 1.0]))
    >>> risk = QuadraticRisk(A, torch.zeros(1, 2))
    >>> float(asam_sharpness(risk, torch.tensor([2.0, 0.0]), rho=0.1))
    2.1
    """
    rho = check_positive("rho", rho)
    eta = check_positive("eta", eta, or_zero=True)
    theta = as_point(risk, theta)
    return _rise(risk, theta, theta.abs() + eta, rho)


def _rise(risk: Risk, theta: Tensor, T: Tensor, rho: float) -> Estimate:
    """Return L(θ + r T² g₀/‖T g₀‖) - L(θ)."""
    value, gradient = risk.value_and_gradient(theta)
    base = check_loss("The loss L(θ)", value, "look at θ and the data")
    check_finite("The gradient g₀", gradient, risk)
    # In float64: squares of single precision overflow at 1e19.
    scaled = T.double() * gradient.double()
    moved = T.double() * risk.gradient(nearby(theta)).double() - scaled
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    rounding = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
    chance = (norm > 0) & ~(norm > CLEAR * rounding)
    if bool(chance.any()):
        raise ValueError(
            "A step of steepest ascent needs a gradient that is more than rounding. "
            f"Got a norm of {float(norm[chance][0]):.3g}, where rounding makes as "
            "much: θ is a minimum or another point of rest. Use float64, or a measure "
            "that needs no gradient, as the expected sharpness or the trace."
        )
    unit = torch.where(norm > 0, scaled / norm, 0.0)
    step = (rho * T.double() * unit).to(theta.dtype)
    there = theta + step
    raised = check_loss("The loss after the step", risk.value(there), "lower rho")
    eps = torch.finfo(risk.dtype).eps
    rounding = (risk.value(nearby(there)) - raised).abs() + eps * raised.abs()
    chance = (norm > 0).squeeze(-1) & ~((raised - base).abs() > CLEAR * rounding)
    if bool(chance.any()):
        raise ValueError(
            "The rise of the loss must be more than rounding. Got one of "
            f"{float((raised - base)[chance][0]):.3g}, where rounding makes "
            f"{float(rounding[chance][0]):.1g}; raise rho, or use float64."
        )
    return exact(raised - base)
