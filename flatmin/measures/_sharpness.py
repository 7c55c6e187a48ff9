"""Expected sharpness: how much the risk rises under isotropic perturbation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin._utils.random import make_generator
from flatmin.risk import Risk

__all__ = ["SharpnessResult", "expected_sharpness"]


@dataclass(frozen=True)
class SharpnessResult:
    """A sharpness and its Monte Carlo error."""

    value: Tensor  # (*batch), float64, units of the loss
    stderr: Tensor  # (*batch), float64, ddof 1
    n_draws: int

    def __float__(self) -> float:
        return float(self.value)


def expected_sharpness(
    risk: Risk,
    theta: Tensor,
    *,
    sigma: float = 0.01,
    n_draws: int = 100,
    absolute: bool = False,
    rng: torch.Generator | int | None = 0,
) -> SharpnessResult:
    """Return (1/M) Σⱼ L(θ + ξⱼ) - L(θ) with ξ ~ N(0, s² I).

    To second order (s²/2) Tr(H). It is not invariant to a reparametrisation: two
    networks with the same function can differ in it. A fixed ``rng`` seed means
    common random numbers: models of the same size meet the same ξ, and differences
    between them are known better than each value.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (\\*batch, D)
    sigma : float, default=0.01
        s, in units of θ.
    n_draws : int, default=100
        M, at least 2.
    absolute : bool, default=False
        Average |ΔL| instead, as the authors' released code does.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random draws.

    Returns
    -------
    SharpnessResult
        Also usable as a number: ``float(result)``.

    Raises
    ------
    ValueError
        If ``sigma`` or ``n_draws`` is too small.

    References
    ----------
    B. Neyshabur et al., "Exploring generalization in deep learning", NeurIPS 2017,
    arXiv 1706.08947, equation 7; sections 4.2 and C of arXiv 1803.00195.

    Examples
    --------
    For a quadratic the second order is exact, here (0.1²/2) · 6 = 0.03:

    >>> from flatmin.risk import QuadraticRisk
    >>> A = torch.diag(torch.tensor([5.0, 1.0], dtype=torch.float64))
    >>> risk = QuadraticRisk(A, torch.zeros(1, 2, dtype=torch.float64))
    >>> theta = torch.zeros(2, dtype=torch.float64)
    >>> result = expected_sharpness(risk, theta, sigma=0.1, n_draws=4000)
    >>> abs(float(result) - 0.03) < 3 * float(result.stderr)
    True
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be finite and positive. Got {sigma}.")
    if n_draws < 2:
        raise ValueError(
            f"n_draws must be at least 2 to have a standard error. Got {n_draws}."
        )
    generator = make_generator(rng, risk.device)
    base = risk.value(theta).double()
    differences = []
    for _ in range(n_draws):
        xi = torch.randn(
            theta.shape, generator=generator, dtype=theta.dtype, device=theta.device
        )
        differences.append(risk.value(theta + sigma * xi).double() - base)
    delta = torch.stack(differences)
    if absolute:
        delta = delta.abs()
    return SharpnessResult(delta.mean(0), delta.std(0) / n_draws**0.5, n_draws)
