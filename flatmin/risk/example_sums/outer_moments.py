"""Moments of rows that are outer products of a slope and an input.

Row i of a matrix W is sᵢ xᵢᵀ, so that the sum of rows is Sᵀ X and that of their squares
(S∘S)ᵀ(X∘X): two products in place of n rows. On a CPU float32 does them in half the
time of float64, and it is used where all its digits can be had. Where the mean is most
of a row, the squares are taken beside it in a second pass. A GPU always makes both,
since to look at the numbers would wait for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.risk.example_sums.moments import centred_moments

__all__ = ["outer_moments"]

# The largest number of a column, as a power of two: products of two squares are below
# 2¹¹², and a sum of them is far from 2¹²⁸.
_TOP = 28
# Examples that are added up in float32. A sum of 512 positive numbers is right to some
# 1e-7; of 20,000 it would be to 1e-6. With 256, two threads took half as long again.
_MOST_AT_A_TIME = 512
# By underflow, a sum over n examples misses at most n 2⁻¹⁵⁰ 2⁵⁶. Above this times n
# that is beyond its digits.
_LEAST = 2.0**-66
# The part of the squares that must be left beside the mean, for sums in each type.
_LEAST_SPREAD_FLOAT32 = 1 / 4
_LEAST_SPREAD_FLOAT64 = 1e-6


def outer_moments(
    slopes: Tensor, inputs: Tensor, n_numbers: int
) -> tuple[Tensor, Tensor]:
    """Return the mean of sᵢ xᵢᵀ and the squares of what is beside it.

    Parameters
    ----------
    slopes : Tensor of shape (n, o)
    inputs : Tensor of shape (n, i)
    n_numbers : int
        Of slopes and inputs that are taken at a time. A wide input is three times as
        fast in blocks that stay within the caches.

    Returns
    -------
    mean : Tensor of shape (o i,)
        In float64, as the next.
    centred_squares : Tensor of shape (o i,)
    """
    step = max(64, n_numbers // (slopes.shape[1] + inputs.shape[1]))
    if slopes.dtype == torch.float32 and _may_look(slopes):
        found = _in_float32(slopes, inputs, min(step, _MOST_AT_A_TIME))
        if found is not None:
            return found
    return _in_float64(slopes, inputs, step)


def _may_look(tensor: Tensor) -> bool:
    """Whether a choice may look at the numbers: on a GPU that would wait for it."""
    return tensor.device.type == "cpu"


def _in_float64(slopes: Tensor, inputs: Tensor, step: int) -> tuple[Tensor, Tensor]:
    n, shape = len(slopes), (slopes.shape[1], inputs.shape[1])
    sums = torch.zeros(shape, dtype=torch.float64, device=slopes.device)
    squares = torch.zeros_like(sums)
    for s, x in zip(slopes.split(step), inputs.split(step), strict=True):
        s, x = s.double(), x.double()
        sums.addmm_(s.mT, x)
        squares.addmm_(s.square().mT, x.square())
    least = squares * _LEAST_SPREAD_FLOAT64
    mean, centred = centred_moments(sums, squares, n)
    lost = centred < least
    if not _may_look(lost) or bool(lost.any()):
        better = _beside_constants(slopes, inputs, step)
        mean, centred = mean.where(~lost, better[0]), centred.where(~lost, better[1])
    return mean.flatten(), centred.flatten()


def _beside_constants(
    slopes: Tensor, inputs: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Return the moments of rows whose slopes and inputs are nearly those of all.

    With s = s̄ + d and x = x̄ + e, the row s xᵀ is s̄ x̄ᵀ and a rest d x̄ᵀ + s eᵀ, whose
    squares are sums of products again, without what all examples share.

    Returns
    -------
    tuple of Tensor
        Of shape (o, i).
    """
    slope_mean = slopes.mean(0, dtype=torch.float64)
    input_mean = inputs.mean(0, dtype=torch.float64)
    shared = torch.outer(slope_mean, input_mean)
    sums, squares = shared.new_zeros(2, *shared.shape)
    slope_squares = torch.zeros_like(slope_mean)
    for s, x in zip(slopes.split(step), inputs.split(step), strict=True):
        s = s.double()
        d, e = s - slope_mean, x - input_mean
        # Σ d and Σ e are 0 but for rounding, so that the rests sum to Σ d eᵀ.
        sums.addmm_(d.mT, e)
        squares.addmm_(s.square().mT, e.square())
        squares.addmm_((d * s).mT, 2 * input_mean * e)
        slope_squares += d.square().sum(0)
    squares.addr_(slope_squares, input_mean.square())
    mean, centred = centred_moments(sums, squares, len(slopes))
    return mean.add_(shared), centred


def _in_float32(
    slopes: Tensor, inputs: Tensor, step: int
) -> tuple[Tensor, Tensor] | None:
    """Return the moments from products in float32, or None where digits are lost.

    A sum of squares has nearly the digits of one. The mean is taken from it, and where
    that is most of it the difference has fewer. Columns are brought to one size, by
    powers of two, so that no square leaves the range.

    Returns
    -------
    tuple of Tensor, or None
    """
    n = len(slopes)
    slope_scale, input_scale = _scales(slopes), _scales(inputs)
    sums = torch.zeros(slopes.shape[1], inputs.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for s, x in zip(slopes.split(step), inputs.split(step), strict=True):
        s, x = s * slope_scale, x * input_scale
        sums += s.mT @ x
        squares += s.square_().mT @ x.square_()
    # NaN and inf fail both.
    in_range = (squares >= n * _LEAST) & (squares < torch.inf)
    in_range |= (squares == 0) & (sums == 0)
    least = squares * _LEAST_SPREAD_FLOAT32
    mean, centred = centred_moments(sums, squares, n)
    held = (centred >= least) & in_range
    if not bool(held.all()):
        return None
    scale = torch.outer(slope_scale.double(), input_scale.double())
    mean /= scale
    centred /= scale.square_()
    return mean.flatten(), centred.flatten()


def _scales(columns: Tensor) -> Tensor:
    """Return the power of two that brings each column's largest number to the top."""
    largest = torch.maximum(columns.amax(0), -columns.amin(0))  # no |x| in full
    exponents = _TOP - torch.frexp(largest).exponent
    scales = exponents.clamp(-126, 126).to(columns.dtype).exp2_()
    return scales.where(largest > 0, 1.0)
