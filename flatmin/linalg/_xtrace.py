"""XTrace: a trace from a sketch with each test vector left out in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.linalg._sketch import Sketch, jackknife_error

__all__ = ["xtrace"]


def xtrace(sketch: Sketch) -> tuple[Tensor, Tensor]:
    """Return an estimate of Tr(A) and its standard error.

    With P the projection on the range of A times the other vectors and u = (I - P) ω,
    each vector ω gives Tr(PAP) + (D - k + 1) uᵀAu / ‖u‖² [1]_: of u only the
    direction is random, so its length is divided out. The value is their mean.

    Their spread would be too small an error, by a quarter on λᵢ = 1/i, since all of
    them share P but for one vector. The jackknife sees that: it repeats the whole
    estimate without vector j, and it is too large rather than too small (the
    inequality of Efron and Stein).

    Parameters
    ----------
    sketch : Sketch
        Of spherical vectors, k ≥ 3.

    Returns
    -------
    value : Tensor of shape ()
    stderr : Tensor of shape ()

    References
    ----------
    .. [1] E. N. Epperly, J. A. Tropp and R. J. Webber, "XTrace: Making the most of
       every sample in stochastic trace estimation", 2024, :doi:`10.1137/23M1548323`.
    """
    W, H, S = sketch.W, sketch.H, sketch.S
    size, k = len(sketch.Omega), sketch.k
    lost = (S * (H @ S)).sum(0)  # sᵢᵀ H sᵢ
    G = W - S * (S * W).sum(0)
    value = (H.trace() - lost + _outside(sketch, G, size - k + 1)).mean()

    # Axes: component, vector i that estimates, vector j that is missing.
    T = sketch.second_directions()
    S_j, W_i = S.unsqueeze(1), W.unsqueeze(2)
    lost_both = lost + (T * _times(H, T)).sum(0)
    G = W_i - S_j * (S_j * W_i).sum(0) - T * (T * W_i).sum(0)
    without = H.trace() - lost_both + _outside(sketch, G, size - k + 2)
    without = without.fill_diagonal_(0).sum(0) / (k - 1)
    return value, jackknife_error(without)


def _outside(sketch: Sketch, G: Tensor, n_left: int) -> Tensor:
    """Return the estimates of Tr((I - P) A (I - P)), where P ωᵢ = Q gᵢ.

    Parameters
    ----------
    sketch : Sketch
    G : Tensor of shape (k, k) or (k, k, n)
        The second axis is i.
    n_left : int
        Rank of I - P.

    Returns
    -------
    Tensor of shape (k,) or (k, n)
    """
    W, R = sketch.W, sketch.R
    if G.ndim == 3:
        W, R = W.unsqueeze(2), R.unsqueeze(2)
    # uᵀAu with u = ω - Qg and Aω = Qr.
    form = ((W - 2 * G) * R).sum(0) + (G * _times(sketch.H, G)).sum(0)
    squared_norm: Tensor = len(sketch.Omega) - G.square().sum(0)
    return n_left / squared_norm * form


def _times(H: Tensor, T: Tensor) -> Tensor:
    product: Tensor = torch.tensordot(H, T, dims=1)
    return product
