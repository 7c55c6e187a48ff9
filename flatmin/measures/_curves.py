"""The loss along a segment, and along a trained curve, between two solutions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from flatmin._utils.numbers import check_count, check_held_by, check_positive
from flatmin._utils.random import check_seed, make_generator
from flatmin._utils.results import HtmlTable, ShortRepr
from flatmin.curvature._finite import check_finite, check_loss
from flatmin.curvature._point import Point, point_tensor
from flatmin.measures._rounding import nearby
from flatmin.risk import Risk
from flatmin.risk.arguments import as_direction, check_risk

__all__ = ["CurveProfile", "bezier_profile", "segment_profile"]

# Where the control point starts beside the middle, in parts of ‖b - a‖: a middle on a
# ridge between two ways round has no gradient that leads off it.
_ASIDE = 0.01


@dataclass(frozen=True, repr=False)
class CurveProfile(HtmlTable, ShortRepr):
    """L(φ(t)) on a curve from φ(0) = a to φ(1) = b.

    ``float`` gives the barrier.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.measures import segment_profile
    >>> ends = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])
    >>> profile = segment_profile(risk, *ends)
    >>> float(profile.barrier)
    0.0
    """

    t: Tensor  # (n,), float64, from 0 to 1
    loss: Tensor  # (n,), float64
    rounding: float  # of the loss; a barrier below it is none
    theta_mid: Tensor | None = None  # (D,), the control point of a Bézier curve

    @property
    def chord(self) -> Tensor:
        """(1 - t) L(a) + t L(b), shape (n,)."""
        return (1 - self.t) * self.loss[0] + self.t * self.loss[-1]

    @property
    def barrier(self) -> float:
        """Max over t of L(φ(t)) - ((1 - t) L(a) + t L(b)), 0 or more."""
        return float((self.loss - self.chord).max())

    @property
    def argmax(self) -> float:
        """The t of the barrier; the first, if there are several."""
        return float(self.t[(self.loss - self.chord).argmax()])

    @property
    def height(self) -> float:
        """Max over t of L(φ(t)) - max(L(a), L(b)), 0 or more."""
        return float(self.loss.max() - self.loss[[0, -1]].max())

    @property
    def mean_loss(self) -> float:
        """∫ L(φ(t)) dt by the trapezoidal rule, which a Bézier curve is trained on."""
        return float(torch.trapezoid(self.loss, self.t))

    def __float__(self) -> float:
        return self.barrier

    def to_frame(self) -> pd.DataFrame:
        """Return one row a point.

        Returns
        -------
        pandas.DataFrame
            Indexed by t, with the loss and the chord.
        """
        columns = {"loss": self.loss.cpu().numpy(), "chord": self.chord.cpu().numpy()}
        return pd.DataFrame(columns, index=pd.Index(self.t.cpu().numpy(), name="t"))


def segment_profile(
    risk: Risk,
    theta_a: Tensor | np.ndarray,
    theta_b: Tensor | np.ndarray,
    *,
    n_points: int = 25,
) -> CurveProfile:
    """Return the loss along the straight segment φ(t) = (1 - t) a + t b.

    Its barrier is that of Entezari et al., max over t of L(φ(t)) - ((1 - t) L(a) +
    t L(b)): at ends of one loss it is the rise above them, and where they differ a
    straight slope from one to the other has none. (Frankle et al. take the mean of the
    ends from the largest loss.) What has to be climbed is ``height``, the rise above
    the higher end.

    The largest of ``n_points`` values is a lower bound on that of the segment. A
    network has many copies of one function, with its units in another order, and there
    is a barrier between copies too.

    All points meet the buffers that the risk holds. With BatchNorm these are the
    running statistics of one training: ends that come from fits with
    ``batch_norm="frozen"`` share them, and the profile is right. Ends whose networks
    have moved their statistics are not themselves under those of another, and no number
    here is about them. Under ``batch_norm="batch"`` a risk takes at each point the
    statistics of its examples there.

    Parameters
    ----------
    risk : Risk
    theta_a, theta_b : Tensor or ndarray of shape (D,)
        a and b, as ``params_`` of two fits.
    n_points : int, default=25
        Equidistant t with 0 and 1, at least 3. A value of the loss each, and three
        for the rounding.

    Returns
    -------
    CurveProfile
        Without ``theta_mid``.

    Raises
    ------
    TypeError
        If an end is not made of real numbers.
    ValueError
        If an end has another shape or is not finite, or ``n_points`` is too small.
    FloatingPointError
        If a loss is not finite.

    References
    ----------
    R. Entezari, H. Sedghi, O. Saukh and B. Neyshabur, "The role of permutation
    invariance in linear mode connectivity of neural networks", ICLR 2022,
    arXiv 2110.06296. J. Frankle, G. Dziugaite, D. Roy and M. Carbin,
    "Linear mode connectivity and the lottery ticket hypothesis", ICML 2020,
    arXiv 1912.05671.

    Examples
    --------
    Over the saddle x² - y² from (-1, -1) to (-1, 1) the loss is 1 - (2t - 1)², and 0 at
    the ends:

    >>> from flatmin.risk import QuadraticRisk
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([2.0, -2.0])), torch.zeros(1, 2))
    >>> a, b = torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, 1.0])
    >>> profile = segment_profile(risk, a, b)
    >>> profile.barrier, profile.argmax, profile.height
    (1.0, 0.5, 1.0)
    """
    n_points = check_count("n_points", n_points, at_least=3)
    a, b = _ends(risk, theta_a, theta_b)
    return _profile(risk, lambda t: _segment(a, b, t), n_points)


def bezier_profile(
    risk: Risk,
    theta_a: Tensor | np.ndarray,
    theta_b: Tensor | np.ndarray,
    *,
    lr: float = 0.1,
    n_iter: int = 200,
    n_draws: int = 4,
    n_points: int = 25,
    rng: torch.Generator | int | None = 0,
) -> CurveProfile:
    """Return the loss along a trained curve φ(t) = (1-t)² a + 2t(1-t) c + t² b.

    The quadratic Bézier curve of Garipov et al. The control point c is trained on E
    L(φ(t)), t uniform on [0, 1], by Adam on all examples: an iteration takes the mean
    of 2t(1-t) ∇L(φ(t)) over one t in each of ``n_draws`` equal parts of [0, 1], and its
    rate falls linearly from ``lr`` to 0. c starts near the middle of a and b, a
    hundredth of their distance to the side.

    What is found is a way over, and not the lowest: a low barrier says that there is
    one, a high one only that this curve with this training has not found it. The mean
    over t is what is trained, and the barrier is a maximum. For the barrier, copies of
    one function and BatchNorm see :func:`segment_profile`.

    Parameters
    ----------
    risk : Risk
    theta_a, theta_b : Tensor or ndarray of shape (D,)
        a and b; they stay.
    lr : float, default=0.1
        Adam's rate, which is about what a coordinate of c moves in an iteration, in
        units of ‖b - a‖/√D, the root mean square of the ends' difference.
    n_iter : int, default=200
        Of Adam, ``n_draws`` full gradients each.
    n_draws : int, default=4
        Values of t in an iteration.
    n_points : int, default=25
        Of the profile, at least 3; twice as many values of the loss.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.

    Returns
    -------
    CurveProfile
        With c as ``theta_mid``.

    Warns
    -----
    ConvergenceWarning
        If the mean loss is more than a hundredth above that of the segment.

    Raises
    ------
    TypeError
        If an end is not made of real numbers.
    ValueError
        If an end has another shape or is not finite, or a number is out of range.
    FloatingPointError
        If a loss or a gradient is not finite.

    References
    ----------
    T. Garipov, P. Izmailov, D. Podoprikhin, D. Vetrov and A. Wilson, "Loss surfaces,
    mode connectivity, and fast ensembling of DNNs", NeurIPS 2018, arXiv 1802.10026.

    Examples
    --------
    The loss (x² + y² - 1)² is 0 on a circle. The segment from (-1, 0) to (1, 0) meets 1
    in its middle; the best c is (0, ±√4.5), where the barrier is 4/81:

    >>> from flatmin.risk import EmpiricalRisk
    >>> class Ring(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    ...
    ...     def forward(self, x):
    ...         return x * self.w.square().sum()
    >>> risk = EmpiricalRisk(Ring(), "squared_error", torch.ones(1, 1), torch.ones(1))
    >>> b = risk.params()
    >>> segment_profile(risk, -b, b).barrier
    1.0
    >>> profile = bezier_profile(risk, -b, b, n_points=37)
    >>> abs(profile.barrier - 4 / 81) < 0.005
    True
    """
    lr = check_positive("lr", lr)
    n_iter = check_count("n_iter", n_iter)
    n_draws = check_count("n_draws", n_draws)
    n_points = check_count("n_points", n_points, at_least=3)
    check_seed(rng)
    check_risk(risk)
    check_held_by("lr", lr, risk.dtype)
    a, b = _ends(risk, theta_a, theta_b)
    generator = make_generator(rng, risk.device)
    straight = _profile(risk, lambda t: _segment(a, b, t), n_points)
    c = _trained(risk, a, b, lr=lr, n_iter=n_iter, n_draws=n_draws, rng=generator)
    found = _profile(risk, lambda t: _bezier(a, c, b, t), n_points)
    before, after = straight.mean_loss, found.mean_loss
    if after > before + 0.01 * abs(before) + straight.rounding:
        warnings.warn(
            "The mean loss along a trained curve should not be above that of the "
            f"segment. Got {after:.3g} and {before:.3g}; lower lr={lr:g}, or raise "
            f"n_iter={n_iter}.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return replace(found, theta_mid=c)


def _ends(risk: Risk, theta_a: Point, theta_b: Point) -> tuple[Tensor, Tensor]:
    """Return both ends in the risk's dtype, on its device."""
    check_risk(risk)
    like = torch.empty(0, dtype=risk.dtype, device=risk.device)
    ends = []
    for name, theta in (("theta_a", theta_a), ("theta_b", theta_b)):
        point = point_tensor(risk, theta, name)
        end = as_direction(point, name, (risk.n_params,), like).detach()
        wild = int((~end.isfinite()).sum())
        if wild:
            raise ValueError(
                f"{name} must be finite in {risk.dtype}. Got NaN or infinity at {wild} "
                f"of {len(end)} coordinates; take the end of a run that has not "
                "diverged."
            )
        ends.append(end)
    return ends[0], ends[1]


# In float64 and by lerp: φ(0) and φ(1) are the ends bit for bit, and equal ends stay.
def _segment(a: Tensor, b: Tensor, t: float) -> Tensor:
    return torch.lerp(a.double(), b.double(), t).to(a.dtype)


def _bezier(a: Tensor, c: Tensor, b: Tensor, t: float) -> Tensor:
    first = torch.lerp(a.double(), c.double(), t)
    second = torch.lerp(c.double(), b.double(), t)
    return torch.lerp(first, second, t).to(a.dtype)


def _trained(
    risk: Risk,
    a: Tensor,
    b: Tensor,
    *,
    lr: float,
    n_iter: int,
    n_draws: int,
    rng: torch.Generator,
) -> Tensor:
    """Return the control point."""
    scale = float((b.double() - a.double()).square().mean().sqrt())
    z = torch.randn(a.shape, generator=rng, dtype=a.dtype, device=a.device)
    c = (_segment(a, b, 0.5) + _ASIDE * scale * z).requires_grad_()
    optimizer = torch.optim.Adam([c])
    for i in range(n_iter):
        optimizer.param_groups[0]["lr"] = lr * scale * (1 - i / n_iter)
        within = torch.rand(
            n_draws, generator=rng, dtype=torch.float64, device=a.device
        )
        mean = torch.zeros_like(a)
        for k, part in enumerate(within.tolist()):
            t = (k + part) / n_draws
            slope = risk.gradient(_bezier(a, c.detach(), b, t))
            mean += 2 * t * (1 - t) / n_draws * slope
        c.grad = check_finite("The gradient along the curve", mean, risk)
        optimizer.step()
    return c.detach()


def _profile(
    risk: Risk, curve: Callable[[float], Tensor], n_points: int
) -> CurveProfile:
    t = torch.linspace(0, 1, n_points, dtype=torch.float64)
    values = torch.stack([risk.value(curve(s)) for s in t.tolist()])
    loss = check_loss(
        "The loss along the curve", values, "look at the ends and at what lies between"
    )
    loss = loss.cpu()
    found = CurveProfile(t, loss, 0.0)
    moved = 0.0
    for s in (0.0, found.argmax, 1.0):  # what a barrier is made of
        there = float(risk.value(nearby(curve(s))))
        moved = max(moved, abs(there - float(loss[t == s])))
    rounding = moved + torch.finfo(risk.dtype).eps * float(loss.abs().max())
    return replace(found, rounding=rounding)
