"""How heavy the tails of noise are, by sums of draws beside the draws themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin._utils.arrays import check_floating
from flatmin._utils.numbers import check_count, check_flag
from flatmin._utils.results import ShortRepr
from flatmin.linalg import Estimate
from flatmin.measures._estimate import exact, quotient

__all__ = ["TailIndex", "tail_index"]


@dataclass(frozen=True, repr=False)
class TailIndex(ShortRepr):
    """α̂ of noise: 2 for a Gaussian, less for tails that are heavier.

    ``float`` gives that of all coordinates together.

    Examples
    --------
    >>> import torch
    >>> from flatmin.measures import tail_index
    >>> result = tail_index(torch.tensor([1.0, 3.0, 1.0, 3.0]), 2)
    >>> round(1 / float(result), 4), result.n_summands, result.n_blocks
    (1.2075, 2, 2)
    """

    overall: Estimate  # α̂ of the mean of 1/α̂ over coordinates
    alpha: Tensor  # (d,) of each coordinate, NaN where a draw is exactly 0
    stderr: Tensor  # (d,)
    n_summands: int  # K₁
    n_blocks: int  # K₂
    left_out: int  # coordinates without α̂

    def __float__(self) -> float:
        return float(self.overall)


def tail_index(
    noise: Tensor, n_summands: int | None = None, *, pooled: bool = False
) -> TailIndex:
    """Return α̂ with 1/α̂ = (mean log|Y| - mean log|X|) / log K₁, Y sums of K₁ draws X.

    The draws X₁ … X_T of a coordinate are cut into K₂ blocks of K₁, and Y is the sum
    of a block. Of independent draws of an α-stable law, symmetric about 0, 1/α̂ has the
    mean 1/α. Other laws have no α; of independent draws with a finite variance α̂
    tends to 2 as K₁ grows, while that of a stable law stays: look at several
    ``n_summands``. The standard errors take the blocks for independent.

    With ``pooled=True`` it is the recipe of the code that the authors released. All
    coordinates of all draws are one sample, row by row, so that Y sums neighbours in
    one gradient. These are neither independent nor of one size, and where their sizes
    differ α̂ is far below 2 for Gaussian noise, too: it measures the shape of Σ. An
    exact 0 then counts as 2.2e-16, and a dead input decides much.

    Parameters
    ----------
    noise : Tensor of shape (T,) or (T, d)
        One draw of ε a row, at one θ, such as noisy gradients less g₀.
    n_summands : int, default=None
        K₁; None is the largest divisor of T, or of Td if pooled, up to its root. The
        last T mod K₁ draws are left out.
    pooled : bool, default=False
        One α̂ of all numbers.

    Returns
    -------
    TailIndex
        In float64. A coordinate with a draw that is exactly 0 has NaN, and is counted
        in ``left_out``: log|X| is not finite, and no stable law gives it.

    Raises
    ------
    TypeError
        If ``noise`` is no Tensor of floating numbers.
    ValueError
        If its shape does not fit, it is not finite, there are less than two blocks of
        two draws, every coordinate is left out, or the sums are no larger than the
        draws.

    References
    ----------
    U. Şimşekli, L. Sagun and M. Gürbüzbalaban, "A tail-index analysis of stochastic
    gradient noise in deep neural networks", ICML 2019, arXiv 1901.06053.

    Examples
    --------
    Two blocks of (1, 3): Y = 4, and 1/α̂ = (log 4 - (log 3)/2) / log 2.

    >>> result = tail_index(torch.tensor([1.0, 3.0, 1.0, 3.0]), 2)
    >>> 1 / float(result)
    1.2075
    """
    check_flag("pooled", pooled)
    check_floating("noise", noise, 1)
    if noise.ndim > 2 or not noise.numel():
        raise ValueError(
            "noise must have shape (T,) or (T, d), a draw a row. Got "
            f"{tuple(noise.shape)}."
        )
    rows = noise.detach().double()
    rows = rows.reshape(-1, 1) if pooled or rows.ndim == 1 else rows
    K = _n_summands(len(rows), n_summands)
    if not bool(rows.isfinite().all()):
        raise ValueError("noise must be finite. Got NaN or infinity.")
    n_blocks = len(rows) // K
    blocks = rows[: n_blocks * K].view(n_blocks, K, -1)
    floor = torch.finfo(torch.float64).eps if pooled else 0.0
    logs = (blocks.abs() + floor).log().mean(1)  # of the draws, (K₂, d)
    inverse = ((blocks.sum(1).abs() + floor).log() - logs) / math.log(K)
    known = inverse.isfinite().all(0)
    if not bool(known.any()):
        raise ValueError(
            "tail_index takes logarithms. Got a draw, or a sum of draws, that is "
            f"exactly 0 in each of {len(known)} coordinates; leave out dead ones, or "
            "use pooled=True, where 0 counts as 2.2e-16."
        )
    inverse = inverse.masked_fill(~known, torch.nan)
    alpha, stderr = _inverted(inverse)
    overall, error = _inverted(inverse[:, known].mean(1, keepdim=True))
    if not bool(overall > 0):
        raise ValueError(
            "tail_index needs sums of draws that are larger than the draws. Got 1/α̂ = "
            f"{float(1 / overall):.3g}: the draws of a block cancel, as anticorrelated "
            "ones do. Use another n_summands, or draws that are independent."
        )
    return TailIndex(
        Estimate(overall.squeeze(0), error.squeeze(0)),
        alpha,
        stderr,
        n_summands=K,
        n_blocks=n_blocks,
        left_out=int((~known).sum()),
    )


def _n_summands(n: int, asked: int | None) -> int:
    """Return K₁ for n draws."""
    if n < 4:
        raise ValueError(f"tail_index needs at least 4 draws. Got {n}.")
    if asked is not None:
        asked = check_count("n_summands", asked, at_least=2)
        return check_count("n_summands", asked, at_most=n // 2, limit="half the draws")
    found = max(k for k in range(1, math.isqrt(n) + 1) if n % k == 0)
    if found == 1:
        raise ValueError(
            f"n_summands=None is a divisor of the number of draws. Got {n} draws, a "
            "prime number; give n_summands."
        )
    return found


def _inverted(inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 / mean and its error, of values of shape (K₂, d), each (d,)."""
    mean = inverse.mean(0)
    error = inverse.std(0) / len(inverse) ** 0.5
    found = quotient([exact(torch.ones_like(mean))], [Estimate(mean, error)])
    return found.value, found.stderr
