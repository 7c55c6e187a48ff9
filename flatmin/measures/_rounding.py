"""Gradient, noise and loss beside what rounding alone makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin.curvature._finite import check_finite, check_loss
from flatmin.risk import Risk

__all__ = ["CLEAR", "GradientMoments", "check_shift", "gradient_moments", "nearby"]

# What stands this many times clear of its rounding is known to some percent.
CLEAR = 30.0

# Examples whose gradients are computed again: rounding is alike from one to the next.
_PROBED = 256

# Below this many a single second look can agree with the first by luck.
FEW = 16


@dataclass(frozen=True)
class GradientMoments:
    """L, g₀ and diag(Σ) at θ, in float64, with the rounding in them."""

    value: Tensor  # (*chains) L
    mean: Tensor  # (*chains, d) g₀
    variances: Tensor  # (*chains, d) Σⱼⱼ
    value_rounding: Tensor  # (*chains) of L
    mean_rounding: Tensor  # (*chains, d) of g₀ⱼ
    noise_rounding: Tensor  # (*chains, d) above which Σⱼⱼ is no rounding

    @property
    def noisy(self) -> Tensor:
        """Coordinates at which the examples differ by more than rounding, (*chains, d).

        Each by itself: coordinates may have any scales beside each other.
        """
        return self.variances > self.noise_rounding

    @property
    def has_noise(self) -> Tensor:
        """Whether Tr(Σ) is more than rounding, (*chains)."""
        return self.variances.sum(-1) > self.noise_rounding.sum(-1)

    @property
    def has_gradient(self) -> Tensor:
        """Whether ‖g₀‖ is more than rounding, (*chains)."""
        norm = torch.linalg.vector_norm
        return norm(self.mean, dim=-1) > CLEAR * norm(self.mean_rounding, dim=-1)

    @property
    def has_loss(self) -> Tensor:
        """Whether L is more than rounding, (*chains)."""
        return self.value.abs() > CLEAR * self.value_rounding

    def check_noise(self, what: str) -> None:
        """Raise unless there is noise.

        Parameters
        ----------
        what : str
            What needs it, for the message.

        Raises
        ------
        ValueError
            If Tr(Σ) is rounding.
        """
        if not bool(self.has_noise.all()):
            traces = self.variances.sum(-1)[~self.has_noise]
            raise ValueError(
                f"{what} needs gradients that differ between examples by more than "
                f"rounding. Got Tr(Σ) = {float(traces.flatten()[0]):.3g}, where "
                "rounding makes as much: examples are equal, or θ fits all of them. "
                "Use other examples, another θ or another selection; float64 resolves "
                "more than float32."
            )

    def check_gradient(self, what: str) -> None:
        """Raise unless there is a gradient.

        Parameters
        ----------
        what : str
            What needs it, for the message.

        Raises
        ------
        ValueError
            If ‖g₀‖ is rounding.
        """
        if not bool(self.has_gradient.all()):
            norms = torch.linalg.vector_norm(self.mean, dim=-1)[~self.has_gradient]
            raise ValueError(
                f"{what} needs a gradient g₀ that is more than rounding. Got ‖g₀‖ = "
                f"{float(norms.flatten()[0]):.3g}, where rounding makes as much: θ is "
                "a minimum or another point of rest. Use another θ; float64 resolves "
                "more than float32."
            )


def nearby(theta: Tensor, seed: int = 0) -> Tensor:
    """Return θ moved by a rounding of each coordinate, up or down.

    What changes there by as much as it is large was rounding, whatever made it: a sum
    of large terms that cancel, or the residuals of a fit that is exact. A test relative
    to a coordinate's own size cannot see that, and one relative to the largest
    coordinate takes those of small scale for rounding.

    Parameters
    ----------
    theta : Tensor of shape (\\*chains, D)
    seed : int, default=0

    Returns
    -------
    Tensor of shape (\\*chains, D)
    """
    rng = torch.Generator().manual_seed(seed)
    up = torch.randint(2, (theta.shape[-1],), generator=rng).to(theta)
    return theta * (1 + torch.finfo(theta.dtype).eps * (2 * up - 1))


def gradient_moments(
    risk: Risk, theta: Tensor, indices: Tensor | None = None
) -> GradientMoments:
    """Return L, g₀ and diag(Σ) with the rounding in them.

    One sweep of per-example squares, one gradient, and gradients of the first 256
    examples twice.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*chains, D)
    indices : Tensor of shape (d,), default=None
        Coordinates to confine it to; None is all.

    Returns
    -------
    GradientMoments

    Raises
    ------
    FloatingPointError
        If a number is not finite; the message names the parameters.
    """

    def some(numbers: Tensor) -> Tensor:
        return numbers.double() if indices is None else numbers[..., indices].double()

    value, mean, variances = risk.value_gradient_and_variances(theta)
    value = check_loss("The loss L(θ)", value, "look at θ and the data")
    mean = check_finite("The gradient g₀", some(mean), risk, indices)
    variances = check_finite("The diagonal of Σ", some(variances), risk, indices)
    # One operation is off by a relative eps, and so is the mean of equal gradients.
    eps = torch.finfo(risk.dtype).eps
    in_rows = mean - risk.l2 * some(theta)  # the gᵢ hold no penalty
    size = (in_rows.square() + variances).sqrt()
    moved: list[Tensor] = []
    mean_moved: list[Tensor] = []
    value_moved: list[Tensor] = []
    theta = theta.to(risk.dtype)
    for seed in range(1 if risk.n_examples >= FEW else 4):
        at = nearby(theta, seed)
        other, gradient = risk.value_and_gradient(at)
        value_moved.append((other.double() - value).abs())
        mean_moved.append((some(gradient) - mean).abs())
        moved.append(_change(risk, theta, at, some))
    rounding = torch.stack(moved).mean(0) + eps * size
    # Sums of squares, less the square of the mean, are taken in float64.
    sums = risk.n_examples**0.5 * torch.finfo(torch.float64).eps * size.square()
    return GradientMoments(
        value,
        mean,
        variances,
        torch.stack(value_moved).mean(0) + eps * value.abs(),
        torch.stack(mean_moved).mean(0) + eps * mean.abs(),
        (CLEAR * rounding).square() + CLEAR * sums,
    )


def _change(
    risk: Risk, theta: Tensor, at: Tensor, some: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the mean of |gᵢⱼ(θ') - gᵢⱼ(θ)| over the first examples, (\\*chains, d)."""
    # Not of its square: a kink of a network that one example crosses on the way is no
    # rounding, and would weigh more.
    total, n = torch.zeros(()), 0
    pairs = zip(
        risk.per_example_gradients(theta), risk.per_example_gradients(at), strict=True
    )
    for rows, others in pairs:
        rows, others = rows[..., :_PROBED, :], others[..., :_PROBED, :]
        change = (some(others) - some(rows)).abs()
        total, n = total.to(change) + change.sum(-2), n + rows.shape[-2]
        if n >= _PROBED:
            break
    return total / n


def check_shift(theta: Tensor, size: float, scale: Tensor | None = None) -> None:
    """Check that θ + size · ξ is there after rounding, ξ ~ N(0, I) or N(0, scale²).

    Parameters
    ----------
    theta : Tensor of shape (\\*chains, D)
    size : float
        Of the shift.
    scale : Tensor of shape (\\*chains, D), default=None
        None is 1.

    Raises
    ------
    ValueError
        If the spacing of numbers as large as θ is more than a third of the shift.
    """
    ones = torch.ones_like(theta) if scale is None else scale
    spacing = torch.finfo(theta.dtype).eps * theta.double().norm(dim=-1)
    if bool((spacing > 0.3 * size * ones.double().norm(dim=-1)).any()):
        raise ValueError(
            f"A perturbation must be larger than the rounding of θ in {theta.dtype}. "
            f"Got sigma={size:g} and a rounding of about {float(spacing.max()):.1e} in "
            f"all of θ, whose largest entry is {float(theta.abs().max()):.1e}; take a "
            "larger sigma, or dtype='float64'."
        )
