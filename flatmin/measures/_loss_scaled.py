"""Alignment of the gradient noise per unit of loss, and what SGD can bear of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from flatmin._utils.numbers import check_accuracy, check_count, check_positive
from flatmin._utils.random import check_seed, make_generator
from flatmin.curvature import GGNOperator
from flatmin.curvature._point import Point, as_one_point
from flatmin.linalg import Estimate, eigsh
from flatmin.measures._deflation import deflated_norm
from flatmin.measures._estimate import exact, quotient, square
from flatmin.measures._rounding import gradient_moments
from flatmin.measures._trace_product import trace_hessian_covariance
from flatmin.risk import Risk

__all__ = ["LossScaledAlignment", "loss_scaled_alignment"]


@dataclass(frozen=True, repr=False)
class LossScaledAlignment(Estimate):
    """μ = Tr(ΣG) / (2 L ‖G‖²_F) and what it is made of.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.measures import loss_scaled_alignment
    >>> float(loss_scaled_alignment(risk, torch.tensor([1.0, 0.0])))  # 30/(2 · 2 · 17)
    0.4411764705882353
    """

    curvature_norm: Estimate = field(kw_only=True)  # ‖G‖_F

    def norm_bound(self, lr: float, batch_size: float) -> float:
        """Return (1/η) √(m/μ), which ‖H‖_F does not exceed where SGD is stable.

        Parameters
        ----------
        lr : float
            η.
        batch_size : float
            m; a noise scale is no integer.

        Returns
        -------
        float
            Infinite for μ ≤ 0, where the theory bounds nothing.

        Raises
        ------
        ValueError
            If ``lr`` or ``batch_size`` is not positive.
        """
        lr = check_positive("lr", lr)
        batch_size = check_positive("batch_size", batch_size)
        if not float(self.value) > 0:
            return math.inf
        return math.sqrt(batch_size / float(self.value)) / lr


def loss_scaled_alignment(
    risk: Risk,
    theta: Point,
    k: int = 10,
    *,
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
) -> LossScaledAlignment:
    """Return μ = Tr(ΣG) / (2 L ‖G‖²_F), G the generalised Gauss-Newton matrix.

    For the squared error near a minimum that fits all data. There one step of SGD has
    E[L(θ')] ≥ (η²/(2m)) Tr(HΣ) = (η²/m) μ ‖H‖²_F L, so that SGD can stay only where
    ‖H‖_F ≤ (1/η) √(m/μ₀), with μ₀ a lower bound of μ about the minimum; the method
    ``norm_bound`` takes μ at θ for it. With C outputs whose residuals are independent
    of their Jacobians μ is 1/C. It does not depend on the scale of the loss, and at
    L = 0 up to rounding it is 0/0 and refused; μ is 0 where all gradients agree up to
    rounding. For other losses, and with a penalty, which is in L and G, it is a number
    without that theory.

    Parameters
    ----------
    risk : Risk
        With squared error.
    theta : Tensor or ndarray of shape (D,)
    k : int, default=10
        Eigenpairs of G from which ‖G‖_F starts; min(k, D).
    rtol : float, default=0.02
        Relative standard error to reach, of Tr(ΣG) and of ‖G‖_F.
    max_matvecs : int, default=200
        Products for each of the two at most.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.

    Returns
    -------
    LossScaledAlignment

    Raises
    ------
    ValueError
        If ``k``, ``rtol`` or ``max_matvecs`` is too small, L is 0 up to rounding, or G
        is zero.
    FloatingPointError
        If the loss or a derivative is not finite.

    References
    ----------
    L. Wu, M. Wang and W. Su, "The alignment property of SGD noise and how it helps
    select flat minima: A stability analysis", NeurIPS 2022, arXiv 2207.02628.

    Examples
    --------
    Two examples of one slope and residuals of one size: Σ = 4r²x², G = 2x², L = r².

    >>> from flatmin.risk import LinearRegressionRisk
    >>> X, y = torch.tensor([[3.0], [3.0]]), torch.tensor([1.0, -1.0])
    >>> risk = LinearRegressionRisk(X, y)
    >>> result = loss_scaled_alignment(risk, torch.zeros(1))
    >>> float(result), result.norm_bound(lr=0.1, batch_size=4)
    (1.0, 20.0)
    """
    check_seed(rng)
    k = check_count("k", k)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    theta = as_one_point(risk, theta, "loss_scaled_alignment")
    generator = make_generator(rng, risk.device)
    moments = gradient_moments(risk, theta)
    if not bool(moments.has_loss):
        raise ValueError(
            "The loss-scaled alignment divides by the loss, which must be more than "
            f"rounding. Got L = {float(moments.value):.3g}, where rounding makes as "
            "much. Use another θ; float64 resolves more than float32."
        )
    product = trace_hessian_covariance(
        risk,
        theta,
        matrix="ggn",
        rtol=rtol,
        max_matvecs=max_matvecs,
        rng=generator,
    )
    operator = GGNOperator(risk, theta)
    pairs = eigsh(operator, min(k, operator.shape[-1]), rng=generator)
    norm = deflated_norm(
        operator, pairs, rtol=rtol, max_matvecs=max_matvecs, rng=generator
    )
    if not bool(norm.value > 0):
        raise ValueError(
            "The loss-scaled alignment divides by ‖G‖²_F, which must be above 0. Got "
            "G = 0: at this θ the outputs do not depend on the parameters."
        )
    above: Estimate = product
    if not bool(moments.has_noise):
        above = exact(torch.zeros_like(product.value), product.n_matvecs)
    mu = quotient([above], [exact(2 * moments.value), square(norm)])
    n_matvecs = mu.n_matvecs + pairs.n_matvecs
    return LossScaledAlignment(mu.value, mu.stderr, n_matvecs, curvature_norm=norm)
