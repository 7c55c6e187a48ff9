"""How Σᵢᵢ grows with Hᵢᵢ: the exponent of a power law, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from flatmin._utils.numbers import check_accuracy
from flatmin.curvature import HessianOperator
from flatmin.linalg import DiagonalResult, diagonal
from flatmin.measures._silent import noisy
from flatmin.risk import EmpiricalRisk, Risk

__all__ = ["PowerLaw", "covariance_exponent", "covariance_exponents"]

# Errors that an entry of diag(H) has to stand clear of 0 by. At three, one entry in a
# thousand that is 0 passes, and its logarithm draws the whole line.
_CLEAR = 5.0


@dataclass(frozen=True)
class PowerLaw:
    """The line log Σᵢᵢ = b log Hᵢᵢ + c by least squares; ``float`` gives b."""

    exponent: float  # b
    stderr: float  # of b, from the scatter about the line
    intercept: float  # c
    correlation: float  # of the logarithms
    n_points: int  # coordinates in the fit

    def __float__(self) -> float:
        return self.exponent


def covariance_exponent(
    risk: Risk,
    theta: Tensor,
    *,
    params: str | list[str] | None = None,
    rtol: float = 0.05,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
) -> PowerLaw:
    """Return b of Σᵢᵢ ∝ Hᵢᵢ^b over all coordinates, or over a selection.

    1 where Σ is proportional to H, as equation 7 of the paper has it; between 1 and 2
    in the theory of the reference, which finds it layer by layer. The fit is of the
    coordinates with Σᵢᵢ above rounding whose Hᵢᵢ is positive and, where it is
    estimated, five standard errors from 0. Errors of Hᵢᵢ that remain draw b towards 0,
    and the standard error takes coordinates for independent, which they are not: it is
    too small rather than too large.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (D,)
    params : str or list of str, default=None
        Names of parameters or modules.
    rtol : float, default=0.05
        Norm of the errors of diag(H), relative to its own.
    max_matvecs : int, default=200
        Products with H at most; exact where D is no larger.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random probes.

    Returns
    -------
    PowerLaw

    Raises
    ------
    ValueError
        If ``rtol`` or ``max_matvecs`` is too small, or fewer than three coordinates can
        be used.

    References
    ----------
    Y. Zhang, N. Yang and Y. Tu, "On the superlinear relationship between SGD noise
    covariance and loss landscape curvature", arXiv 2602.05600.

    Examples
    --------
    Hᵢᵢ = 1, 2, 4 and Σᵢᵢ = 1, 4, 16:

    >>> from flatmin.risk import QuadraticRisk
    >>> h = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    >>> slopes = torch.cat([torch.diag(h), -torch.diag(h)]) * 3**0.5
    >>> risk = QuadraticRisk(torch.diag(h), slopes)
    >>> float(covariance_exponent(risk, torch.zeros(3, dtype=torch.float64)))
    2.0
    """
    check_accuracy(rtol, max_matvecs, at_least=6)
    operator = HessianOperator(risk, theta, params=params)
    curvature = diagonal(operator, rtol=rtol, max_matvecs=max_matvecs, rng=rng)
    variances = _variances(risk, theta)
    if operator.indices is not None:
        variances = variances[operator.indices]
    return _fit(curvature, variances)


def covariance_exponents(
    risk: EmpiricalRisk,
    theta: Tensor,
    *,
    rtol: float = 0.05,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
) -> dict[str, PowerLaw]:
    """Return :func:`covariance_exponent` of each layer, from one estimate of diag(H).

    A layer's parameters are those that one module holds. Layers in which fewer than
    three coordinates can be used are left out.

    Parameters
    ----------
    risk : EmpiricalRisk
    theta : Tensor of shape (D,)
    rtol : float, default=0.05
        Norm of the errors of diag(H), relative to its own.
    max_matvecs : int, default=200
        Products with H at most; exact where D is no larger.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random probes.

    Returns
    -------
    dict of str to PowerLaw
        By the name of the module.

    Raises
    ------
    ValueError
        If ``rtol`` or ``max_matvecs`` is too small.
    """
    check_accuracy(rtol, max_matvecs, at_least=6)
    operator = HessianOperator(risk, theta)
    whole = diagonal(operator, rtol=rtol, max_matvecs=max_matvecs, rng=rng)
    variances = _variances(risk, theta)
    fits = {}
    for name, part in risk.layout.layers().items():
        curvature = DiagonalResult(whole.value[part], whole.stderr[part], 0)
        if int(_usable(curvature, variances[part]).sum()) >= 3:
            fits[name] = _fit(curvature, variances[part])
    return fits


def _variances(risk: Risk, theta: Tensor) -> Tensor:
    """Return diag(Σ), 0 where it is rounding alone."""
    variances = risk.gradient_variances(theta)
    return torch.where(noisy(variances, risk.dtype), variances, 0.0)


def _usable(curvature: DiagonalResult, variances: Tensor) -> Tensor:
    return (curvature.value > _CLEAR * curvature.stderr) & (variances > 0)


def _fit(curvature: DiagonalResult, variances: Tensor) -> PowerLaw:
    usable = _usable(curvature, variances)
    n_points = int(usable.sum())
    if n_points < 3:
        raise ValueError(
            "A fit needs three coordinates with Σᵢᵢ > 0 and Hᵢᵢ clear of 0. Got "
            f"{n_points} of {len(usable)}; raise max_matvecs, or choose other params."
        )
    x = curvature.value[usable].double().log().cpu().numpy()
    y = variances[usable].double().log().cpu().numpy()
    line = stats.linregress(x, y)
    return PowerLaw(
        float(line.slope),
        float(line.stderr),
        float(line.intercept),
        float(line.rvalue),
        n_points,
    )
