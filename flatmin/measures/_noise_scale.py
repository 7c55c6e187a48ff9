"""The gradient noise beside the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin._utils.numbers import check_accuracy, check_positive
from flatmin._utils.random import check_seed
from flatmin._utils.results import ShortRepr
from flatmin.curvature import HessianOperator
from flatmin.curvature._finite import names_of
from flatmin.curvature._point import Point, as_point
from flatmin.linalg import Estimate
from flatmin.measures._estimate import exact, quotient
from flatmin.measures._rounding import CLEAR, gradient_moments
from flatmin.measures._trace_product import trace_hessian_covariance
from flatmin.risk import Risk

__all__ = [
    "GradientNoise",
    "SignalToNoise",
    "curvature_noise_scale",
    "gradient_noise",
    "gradient_signal_to_noise",
]


@dataclass(frozen=True, repr=False)
class GradientNoise(ShortRepr):
    """Sizes of the gradient and of its noise; ``float`` gives the noise scale.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.measures import gradient_noise
    >>> found = gradient_noise(risk, torch.tensor([0.0, 3.0]))
    >>> float(found)  # Tr(Σ)/‖g₀‖² = 15/9
    1.6666666666666667
    """

    gradient_norm: Tensor  # (*chains) ‖g₀‖, float64
    trace: Tensor  # (*chains) Tr(Σ), float64
    has_gradient: Tensor  # (*chains) bool: ‖g₀‖ is more than rounding
    has_noise: Tensor  # (*chains) bool: Tr(Σ) is more than rounding

    @property
    def simple_noise_scale(self) -> Tensor:
        """Tr(Σ) / ‖g₀‖², the batch size at which √E‖ε‖² equals ‖g₀‖.

        0 where all examples agree up to rounding, infinite where g₀ is rounding.

        Raises
        ------
        ValueError
            If both are rounding, so that it is 0/0.
        """
        if not bool((self.has_gradient | self.has_noise).all()):
            raise ValueError(
                "The noise scale is Tr(Σ)/‖g₀‖², and one of them must be more than "
                "rounding. Got rounding for both, so that the ratio is 0/0: θ fits "
                "all examples. Use another θ; float64 resolves more than float32."
            )
        scale = self.trace / self.gradient_norm.square()
        scale = torch.where(self.has_gradient, scale, torch.inf)
        return torch.where(self.has_noise, scale, 0.0)

    def noise_norm(self, batch_size: float) -> Tensor:
        """Return √(Tr(Σ)/m), the root mean square of ‖ε‖ in units of the gradient.

        Parameters
        ----------
        batch_size : float
            m; a noise scale is no integer.

        Returns
        -------
        Tensor of shape (\\*chains)

        Raises
        ------
        ValueError
            If ``batch_size`` is not positive.
        """
        batch_size = check_positive("batch_size", batch_size)
        return (self.trace / batch_size).sqrt()

    def diffusion_norm(self, batch_size: float, lr: float) -> Tensor:
        """Return √(η Tr(Σ)/m), what figures 2 and 11 of the paper set beside ‖g₀‖.

        The noise of the diffusion, equation 5, over a unit of time: its units are not
        the gradient's, and where it lies above ‖g₀‖ depends on η.

        Parameters
        ----------
        batch_size : float
            m; a noise scale is no integer.
        lr : float
            η.

        Returns
        -------
        Tensor of shape (\\*chains)

        Raises
        ------
        ValueError
            If ``lr`` or ``batch_size`` is not positive.
        """
        lr = check_positive("lr", lr)
        return lr**0.5 * self.noise_norm(batch_size)

    def __float__(self) -> float:
        return float(self.simple_noise_scale)


def gradient_noise(risk: Risk, theta: Point) -> GradientNoise:
    """Return ‖g₀‖ and Tr(Σ), from which both noise magnitudes and the scale follow.

    Tr(Σ)/‖g₀‖² is the simple noise scale. Here g₀ is the gradient of all data and
    known exactly, so that the two-batch estimate of the reference is not needed.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)

    Returns
    -------
    GradientNoise

    Raises
    ------
    FloatingPointError
        If the loss or a gradient is not finite; the message names the parameters.

    References
    ----------
    S. McCandlish et al., "An empirical model of large-batch training", 2018,
    arXiv 1812.06162, section 2; Z. Zhu et al., arXiv 1803.00195, section 4.1.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.eye(2), torch.tensor([[6.0, 0.0], [-6.0, 0.0]]))
    >>> noise = gradient_noise(risk, torch.tensor([0.0, 2.0]))
    >>> float(noise.gradient_norm), float(noise.noise_norm(batch_size=4)), float(noise)
    (2.0, 3.0, 9.0)
    """
    theta = as_point(risk, theta)
    moments = gradient_moments(risk, theta)
    return GradientNoise(
        torch.linalg.vector_norm(moments.mean, dim=-1),
        moments.variances.sum(-1),
        moments.has_gradient,
        moments.has_noise,
    )


def curvature_noise_scale(
    risk: Risk,
    theta: Point,
    *,
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
) -> Estimate:
    """Return Tr(HΣ) / (g₀ᵀHg₀), the curvature-weighted gradient noise scale.

    About the batch size beyond which a larger one hardly makes a step of gradient
    descent better, to second order. It needs H to be positive along g₀: where it is
    not, the number is negative or meaningless.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)
    rtol : float, default=0.02
        Relative standard error of Tr(HΣ) to reach.
    max_matvecs : int, default=200
        See :func:`trace_hessian_covariance`.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.

    Returns
    -------
    Estimate
        0 where all examples agree up to rounding.

    Raises
    ------
    ValueError
        If ``rtol`` or ``max_matvecs`` is too small, or g₀ or g₀ᵀHg₀ is rounding.
    FloatingPointError
        If the loss or a derivative is not finite; the message names the parameters.

    References
    ----------
    S. McCandlish et al., "An empirical model of large-batch training", 2018,
    arXiv 1812.06162, section 2.

    Examples
    --------
    Noise along an axis of curvature 4, the gradient (0, 2) along one of 1:

    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[6.0, 0.0], [-6.0, 0.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> float(curvature_noise_scale(risk, torch.tensor([0.0, 2.0])))
    36.0
    """
    check_seed(rng)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    theta = as_point(risk, theta)
    moments = gradient_moments(risk, theta)
    moments.check_gradient("The curvature-weighted noise scale")
    gradient = moments.mean
    operator = HessianOperator(risk, theta, n_products=1)
    curved = operator.matvec(gradient.to(risk.dtype)).double()
    along = (gradient * curved).sum(-1)
    norm = torch.linalg.vector_norm
    largest = norm(gradient, dim=-1) * norm(curved, dim=-1)
    if bool((along.abs() <= CLEAR * torch.finfo(risk.dtype).eps * largest).any()):
        raise ValueError(
            "The curvature-weighted noise scale needs a curvature g₀ᵀHg₀ along the "
            f"gradient that is more than rounding. Got {along.min():.3g}; use another "
            "θ, or the simple noise scale of gradient_noise."
        )
    product = trace_hessian_covariance(
        risk, theta, rtol=rtol, max_matvecs=max_matvecs, rng=rng
    )
    scale = quotient([product], [exact(along)])
    return Estimate(
        torch.where(moments.has_noise, scale.value, 0.0),
        torch.where(moments.has_noise, scale.stderr, 0.0),
        scale.n_matvecs,
    )


@dataclass(frozen=True, repr=False)
class SignalToNoise(ShortRepr):
    """The GSNR and what it is the mean of; ``float`` gives the mean.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.measures import gradient_signal_to_noise
    >>> float(gradient_signal_to_noise(risk, torch.ones(2)))  # (16/5 + 1/10)/2
    1.6500000000000001
    """

    value: Tensor  # (*chains), float64
    n_used: Tensor  # (*chains), coordinates whose examples differ
    left_out: dict[str, int]  # coordinates without noise, at any θ, by parameter

    def __float__(self) -> float:
        return float(self.value)


def gradient_signal_to_noise(risk: Risk, theta: Point) -> SignalToNoise:
    """Return the mean over coordinates of g₀ⱼ² / Σⱼⱼ, the GSNR.

    Of one example's gradient; m times as large for a minibatch. Coordinates at which
    all examples agree, Σⱼⱼ = 0 up to the rounding of this coordinate's own gradients,
    have an infinite ratio, or 0/0: they are left out, and the result tells how many,
    and of which parameters. The mean is a mean of ratios: a few coordinates of little
    noise can make most of it.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (\\*chains, D)

    Returns
    -------
    SignalToNoise

    Raises
    ------
    ValueError
        If no coordinate is left, as with equal examples, or with one.
    FloatingPointError
        If the loss or a gradient is not finite; the message names the parameters.

    References
    ----------
    J. Liu et al., "Understanding why neural networks generalize well through GSNR of
    parameters", ICLR 2020, arXiv 2001.07384.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    >>> risk = QuadraticRisk(torch.eye(2), slopes)
    >>> float(gradient_signal_to_noise(risk, torch.tensor([1.0, 1.0])))
    0.625
    """
    theta = as_point(risk, theta)
    moments = gradient_moments(risk, theta)
    noisy = moments.noisy
    n_used = noisy.sum(-1)
    if bool((n_used == 0).any()):
        raise ValueError(
            "The signal-to-noise ratio needs a coordinate at which examples differ by "
            f"more than rounding. Got none of {noisy.shape[-1]}; use other examples, "
            "or another θ; float64 resolves more than "
            "float32."
        )
    variances = torch.where(noisy, moments.variances, 1.0)
    ratios = torch.where(noisy, moments.mean.square() / variances, 0.0)
    silent = (~noisy).reshape(-1, noisy.shape[-1]).any(0)
    return SignalToNoise(ratios.sum(-1) / n_used, n_used, names_of(silent, risk))
