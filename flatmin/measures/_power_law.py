"""How Σᵢᵢ grows with Hᵢᵢ: the exponent of a power law, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from flatmin._utils.numbers import check_accuracy
from flatmin._utils.random import check_seed
from flatmin._utils.results import HtmlTable, ShortRepr
from flatmin.curvature import HessianOperator
from flatmin.curvature._finite import names_of
from flatmin.curvature._point import Point, as_one_point
from flatmin.linalg import diagonal
from flatmin.measures._layers import check_layers
from flatmin.measures._rounding import CLEAR, gradient_moments, nearby
from flatmin.risk import EmpiricalRisk, Risk

__all__ = ["PowerLaw", "PowerLaws", "covariance_exponent", "covariance_exponents"]

# Errors that an entry of diag(H) has to stand clear of 0 by. At three, one entry in a
# thousand that is 0 passes, and its logarithm draws the whole line.
_CLEAR = 5.0


@dataclass(frozen=True, repr=False)
class PowerLaw(ShortRepr):
    """The line log Σᵢᵢ = b log Hᵢᵢ + c by least squares; ``float`` gives b.

    Examples
    --------
    >>> import torch
    >>> from flatmin.measures import covariance_exponent
    >>> from flatmin.risk import QuadraticRisk
    >>> scale = torch.tensor([1.0, 2.0, 4.0, 8.0])
    >>> slopes = torch.cat([torch.diag(scale), -torch.diag(scale)])
    >>> risk = QuadraticRisk(torch.diag(scale), slopes)
    >>> round(float(covariance_exponent(risk, torch.zeros(4))), 6)  # Σᵢᵢ ∝ Hᵢᵢ²
    2.0
    """

    exponent: float  # b
    stderr: float  # of b, from the scatter about the line
    intercept: float  # c
    correlation: float  # of the logarithms
    n_points: int  # coordinates in the fit
    left_out: dict[str, int]  # coordinates that are not, by parameter

    def __float__(self) -> float:
        return self.exponent


class PowerLaws(HtmlTable, dict[str, PowerLaw]):
    """The fits by layer; ``left_out`` says why a layer has none.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import EmpiricalRisk
    >>> X, y = load_iris(return_X_y=True)
    >>> _ = torch.manual_seed(0)
    >>> layers = torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    >>> net = torch.nn.Sequential(*layers)
    >>> risk = EmpiricalRisk(net, "cross_entropy", X, y)
    >>> from flatmin.measures import covariance_exponents
    >>> fits = covariance_exponents(risk, risk.params())
    >>> sorted(fits)
    ['0', '2']
    """

    def __init__(self, fits: dict[str, PowerLaw], left_out: dict[str, str]) -> None:
        super().__init__(fits)
        self.left_out = left_out

    def to_frame(self) -> pd.DataFrame:
        """Return one row a layer.

        Returns
        -------
        pandas.DataFrame
            Columns exponent, stderr, intercept, correlation and n_points.
        """
        columns = ["exponent", "stderr", "intercept", "correlation", "n_points"]
        index = pd.Index(self, name="layer")
        return pd.DataFrame(map(vars, self.values()), index, columns)

    def __repr__(self) -> str:
        return f"PowerLaws({super().__repr__()}, left_out={self.left_out!r})"


def covariance_exponent(
    risk: Risk,
    theta: Point,
    *,
    select: str | list[str] | None = None,
    rtol: float = 0.05,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
) -> PowerLaw:
    """Return b of Σᵢᵢ ∝ Hᵢᵢ^b over all coordinates, or over a selection.

    1 where Σ is proportional to H, as equation 7 of the paper has it; between 1 and 2
    in the theory of the reference, which finds it layer by layer. The fit is of the
    coordinates with Σᵢᵢ above the rounding of their own gradients, whose Hᵢᵢ is
    positive and clear of 0: thirty times its rounding where it is exact, for which
    diag(H) is computed at a second θ a rounding away, five standard errors where it is
    estimated. The result tells the others by parameter. Errors of Hᵢᵢ that remain draw
    b towards 0, and the standard error takes coordinates for independent, which they
    are not: it is too small rather than too large.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (D,)
    select : str or list of str, default=None
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
        If ``rtol`` or ``max_matvecs`` is too small, fewer than three coordinates can
        be used, or they have one Hᵢᵢ.
    FloatingPointError
        If a number is not finite; the message names the parameters. Leave those out by
        ``select``.

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
    check_seed(rng)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    theta = as_one_point(risk, theta, "covariance_exponent")
    points = _points(risk, theta, select, rtol=rtol, max_matvecs=max_matvecs, rng=rng)
    return _fit(points, risk)


def covariance_exponents(
    risk: EmpiricalRisk,
    theta: Point,
    *,
    rtol: float = 0.05,
    max_matvecs: int = 200,
    rng: torch.Generator | int | None = 0,
) -> PowerLaws:
    """Return :func:`covariance_exponent` of each layer, from one estimate of diag(H).

    A layer's parameters are those that one module holds. A layer that cannot be fitted
    is left out, and ``left_out`` of the result tells why.

    Parameters
    ----------
    risk : EmpiricalRisk
    theta : Tensor or ndarray of shape (D,)
    rtol : float, default=0.05
        Norm of the errors of diag(H), relative to its own.
    max_matvecs : int, default=200
        Products with H at most; exact where D is no larger.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random probes.

    Returns
    -------
    PowerLaws
        A dict of :class:`PowerLaw` by the name of the module.

    Raises
    ------
    TypeError
        If the risk is none of a module.
    ValueError
        If ``rtol`` or ``max_matvecs`` is too small, or θ is not one vector.
    FloatingPointError
        If a number is not finite; the message names the parameters.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import EmpiricalRisk
    >>> X, y = load_iris(return_X_y=True)
    >>> _ = torch.manual_seed(0)
    >>> layers = torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
    >>> net = torch.nn.Sequential(*layers)
    >>> risk = EmpiricalRisk(net, "cross_entropy", X, y)
    >>> from flatmin.measures import covariance_exponents
    >>> list(covariance_exponents(risk, risk.params()))
    ['0', '2']
    """
    check_seed(rng)
    rtol, max_matvecs = check_accuracy(rtol, max_matvecs)
    check_layers(risk)
    theta = as_one_point(risk, theta, "covariance_exponents")
    points = _points(risk, theta, None, rtol=rtol, max_matvecs=max_matvecs, rng=rng)
    fits, left_out = {}, {}
    for name, part in risk.layout.layers().items():
        at = torch.arange(part.start, part.stop, device=risk.device)
        some = _Points(points.h[part], points.variances[part], points.usable[part], at)
        try:
            fits[name] = _fit(some, risk)
        except _NoFitError as error:
            left_out[name] = str(error)
    return PowerLaws(fits, left_out)


class _NoFitError(ValueError):
    """The coordinates give no line."""


@dataclass(frozen=True)
class _Points:
    h: Tensor  # (d,) Hᵢᵢ
    variances: Tensor  # (d,) Σᵢᵢ
    usable: Tensor  # (d,) bool
    indices: Tensor | None  # (d,) the coordinates; None for all


def _points(
    risk: Risk,
    theta: Tensor,
    select: str | list[str] | None,
    *,
    rtol: float,
    max_matvecs: int,
    rng: torch.Generator | int | None,
) -> _Points:
    """Return Hᵢᵢ and Σᵢᵢ, and where both are known to be positive."""
    operator = HessianOperator(risk, theta, select=select)
    moments = gradient_moments(risk, theta, operator.indices)
    curvature = diagonal(operator, rtol=rtol, max_matvecs=max_matvecs, rng=rng)
    h = curvature.value.double()
    positive = h > _CLEAR * curvature.stderr
    if not bool(curvature.stderr.any()):  # exact but for rounding
        at = HessianOperator(risk, nearby(operator.theta), select=select)
        positive &= h > CLEAR * (at.to_dense().diagonal().double() - h).abs()
    return _Points(h, moments.variances, positive & moments.noisy, operator.indices)


def _fit(points: _Points, risk: Risk) -> PowerLaw:
    usable = points.usable
    n_points = int(usable.sum())
    if n_points < 3:
        raise _NoFitError(
            "A fit needs three coordinates with Σᵢᵢ > 0 and Hᵢᵢ clear of 0. Got "
            f"{n_points} of {len(usable)}; raise max_matvecs, or select others."
        )
    x = points.h[usable].log()
    if float(x.max() - x.min()) <= 2 * CLEAR * torch.finfo(risk.dtype).eps:
        raise _NoFitError(
            "A fit needs coordinates of different Hᵢᵢ. Got "
            f"{float(points.h[usable][0]):.6g} at all {n_points}; select others."
        )
    y = points.variances[usable].log()
    line = stats.linregress(x.cpu().numpy(), y.cpu().numpy())
    return PowerLaw(
        float(line.slope),
        float(line.stderr),
        float(line.intercept),
        float(line.rvalue),
        n_points,
        names_of(~usable, risk, points.indices),
    )
