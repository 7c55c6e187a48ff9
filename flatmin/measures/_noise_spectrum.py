"""The gradient covariance by itself: size, leading eigenvalues, effective rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flatmin._utils.numbers import check_accuracy, check_count, check_positive
from flatmin._utils.random import check_seed, make_generator
from flatmin._utils.results import ShortRepr
from flatmin.curvature import GradientCovarianceOperator, covariance_eigenpairs
from flatmin.curvature._point import Point, as_one_point
from flatmin.linalg import Estimate
from flatmin.measures._deflation import deflated_norm
from flatmin.measures._estimate import exact, quotient, square
from flatmin.measures._rounding import GradientMoments, gradient_moments
from flatmin.risk import Risk

__all__ = ["NoiseSpectrum", "noise_spectrum"]


@dataclass(frozen=True, repr=False)
class NoiseSpectrum(ShortRepr):
    """Σ, divisor N, on D coordinates; ``float`` gives the effective rank.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.measures import noise_spectrum
    >>> float(noise_spectrum(risk, theta, 2))  # 15²/(25 + 25 + 25 + 100)
    1.2857142857142825
    """

    n_params: int  # D
    eigenvalues: Tensor  # (k,) γᵢ, float64, falling
    trace: Estimate  # Tr(Σ), exact
    norm: Estimate  # ‖Σ‖_F
    moments: GradientMoments = field(repr=False)  # which tell noise from rounding

    @property
    def effective_rank(self) -> Estimate:
        """Tr(Σ)² / ‖Σ‖²_F, the participation ratio of the eigenvalues, in [1, D].

        Raises
        ------
        ValueError
            If Σ is rounding, so that it is 0/0.
        """
        self.moments.check_noise("The effective rank")
        return quotient([self.trace, self.trace], [square(self.norm)])

    @property
    def share(self) -> Tensor:
        """Share of Tr(Σ) in the k leading eigenvalues.

        Raises
        ------
        ValueError
            If Σ is rounding, so that it is 0/0.
        """
        self.moments.check_noise("The share of the leading eigenvalues")
        return self.eigenvalues.sum() / self.trace.value

    def __float__(self) -> float:
        return float(self.effective_rank)


def noise_spectrum(
    risk: Risk,
    theta: Point,
    k: int = 20,
    *,
    select: str | list[str] | None = None,
    tol: float = 1e-4,
    rtol: float = 0.02,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
) -> NoiseSpectrum:
    """Return the leading spectrum of Σ, its trace, norm and effective rank.

    The effective rank is the participation ratio (Σγᵢ)² / Σγᵢ²: r for r equal
    eigenvalues and zeros besides. For diag(Σ) alone see
    :func:`flatmin.curvature.covariance_diagonal`.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (D,)
    k : int, default=20
        At most min(D, N - 1).
    select : str or list of str, default=None
        Names of parameters or modules, to whose block of Σ to confine it.
    tol : float, default=1e-4
        Residual of the eigenpairs, relative to the largest eigenvalue.
    rtol : float, default=0.02
        Relative standard error of ‖Σ‖_F to reach.
    max_matvecs : int, default=200
        Products with Σ for it at most.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.

    Returns
    -------
    NoiseSpectrum

    Raises
    ------
    ValueError
        If ``k`` does not fit, or ``tol``, ``rtol`` or ``max_matvecs`` is too small.
    FloatingPointError
        If the loss or a gradient is not finite; the message names the parameters.

    References
    ----------
    The participation ratio: T. Litwin-Kumar et al., "Optimal degrees of synaptic
    connectivity", 2017, :doi:`10.1016/j.neuron.2017.01.030`.

    Examples
    --------
    Variances 9 and 3: 12² / (81 + 9) = 1.6.

    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 0.0], [0.0, 3**0.5]]) * 2**0.5
    >>> risk = QuadraticRisk(torch.eye(2), torch.cat([slopes, -slopes]))
    >>> result = noise_spectrum(risk, torch.zeros(2), 1)
    >>> float(result.trace), float(result.effective_rank)
    (12.0, 1.6)
    """
    check_seed(rng)
    k = check_count("k", k)
    tol = check_positive("tol", tol)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    theta = as_one_point(risk, theta, "noise_spectrum")
    generator = make_generator(rng, risk.device)
    operator = GradientCovarianceOperator(risk, theta, select=select)
    moments = gradient_moments(risk, theta, operator.indices)
    pairs = covariance_eigenpairs(risk, theta, k, tol=tol, rng=generator, select=select)
    norm = deflated_norm(
        operator, pairs, rtol=rtol, max_matvecs=max_matvecs, rng=generator
    )
    total = exact(moments.variances.sum(-1))
    return NoiseSpectrum(operator.shape[-1], pairs.eigenvalues, total, norm, moments)
