"""XDiag: a diagonal from a sketch with each test vector left out in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg._sketch import Sketch, jackknife_error

__all__ = ["xdiag"]

# Entries at a time: their blocks of k numbers are in float64.
_ROWS = 1 << 16


def xdiag(sketch: Sketch) -> tuple[Tensor, Tensor]:
    """Return an estimate of diag(A) and the standard error of every entry.

    Each test vector ω of signs gives diag(PA) + ω ∘ (I - P) A ω, P being the
    projection on the range of A times the other vectors [1]_. The value is their
    mean, the error the jackknife's, as for :func:`xtrace`.

    Parameters
    ----------
    sketch : Sketch
        Of vectors of signs, k ≥ 3.

    Returns
    -------
    value : Tensor of shape (D,)
    stderr : Tensor of shape (D,)

    References
    ----------
    .. [1] E. N. Epperly, J. A. Tropp and R. J. Webber, "XTrace: Making the most of
       every sample in stochastic trace estimation", 2024, :doi:`10.1137/23M1548323`.
    """
    size, k = len(sketch.Omega), sketch.k
    S = sketch.S
    step = (S * sketch.R).sum(0)  # sᵢᵀ rᵢ, and Q sᵢ sᵢᵀ rᵢ is (I - P) A ωᵢ
    cosine, sine = sketch.angles()
    # Without vector j the direction of vector i is (sᵢ - c sⱼ) / s, c the cosine and s
    # the sine between them.
    off = 1 - torch.eye(k, dtype=S.dtype, device=S.device)
    inverse = torch.where(sine > 0, 1 / sine, 0.0) * off
    squares, mixed = inverse.square(), cosine * inverse.square()
    steps = step.unsqueeze(1) * inverse.square()

    values, errors = [], []
    for start in range(0, size, _ROWS):
        rows = slice(start, start + _ROWS)
        Omega, Q, Z = (
            block[rows].double() for block in (sketch.Omega, sketch.Q, sketch.Z)
        )
        a, b, full = Q @ S, Z @ S, (Q * Z).sum(1)
        values.append(full + (Omega * a * step - a * b).mean(1))
        second = (
            (a * b) @ squares
            - a * (b @ mixed)
            - b * (a @ mixed)
            + a * b * (cosine * mixed).sum(0)
        )
        draws = (Omega * a) @ steps - a * (Omega @ (cosine * steps))
        without = full.unsqueeze(1) - a * b + (draws - second) / (k - 1)
        errors.append(jackknife_error(without))
    return torch.cat(values), torch.cat(errors)
