"""How much of the spectrum is negative."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin._utils.numbers import check_count
from flatmin._utils.random import check_seed
from flatmin.curvature import HessianOperator
from flatmin.curvature._point import Point, as_one_point
from flatmin.linalg import Estimate, SpectralDensity, spectral_density
from flatmin.risk import Risk

__all__ = ["density_negative_mass", "negative_mass"]


def negative_mass(
    risk: Risk,
    theta: Point,
    *,
    select: str | list[str] | None = None,
    n_probes: int = 10,
    n_steps: int = 80,
    rng: torch.Generator | int | None = 0,
) -> Estimate:
    """Return Σ_{λ<0} |λ| / Σ |λ| over the eigenvalues of H.

    0 for a convex risk, small at a minimum, 1/2 where directions up and down balance.
    From all eigenvalues where D is small, else by stochastic Lanczos quadrature, whose
    own error, of eigenvalues near 0, the standard error leaves out: repeat with more
    ``n_steps`` to see it.

    Parameters
    ----------
    risk : Risk
    theta : Tensor or ndarray of shape (D,)
    select : str or list of str, default=None
        Names of parameters or modules, to whose block of H to confine it.
    n_probes : int, default=10
        See :func:`flatmin.linalg.spectral_density`.
    n_steps : int, default=80
        See :func:`flatmin.linalg.spectral_density`; ``n_probes`` times as many
        products at most.
    rng : torch.Generator, int or None, default=0
        A seed, a generator on the risk's device, or None for random probes.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If there are fewer than two probes, or no step, or H is zero.

    References
    ----------
    B. Ghorbani, S. Krishnan and Y. Xiao, "An investigation into neural net
    optimization via Hessian eigenvalue density", 2019, arXiv 1901.10159.

    Examples
    --------
    >>> from flatmin.risk import QuadraticRisk
    >>> A = torch.diag(torch.tensor([3.0, 2.0, -1.0, -2.0]))
    >>> risk = QuadraticRisk(A, torch.zeros(1, 4))
    >>> float(negative_mass(risk, torch.zeros(4)))
    0.375
    """
    check_seed(rng)
    n_probes = check_count("n_probes", n_probes, at_least=2)
    n_steps = check_count("n_steps", n_steps)
    theta = as_one_point(risk, theta, "negative_mass")
    operator = HessianOperator(risk, theta, select=select)
    density = spectral_density(operator, n_probes=n_probes, n_steps=n_steps, rng=rng)
    return density_negative_mass(density)


def density_negative_mass(density: SpectralDensity) -> Estimate:
    """Return Σ_{λ<0} |λ| / Σ |λ| of a density that is there already.

    Parameters
    ----------
    density : flatmin.linalg.SpectralDensity

    Returns
    -------
    Estimate

    Raises
    ------
    TypeError
        If it is no density.
    ValueError
        For a zero matrix, of which it is 0/0.

    Examples
    --------
    >>> import torch
    >>> from flatmin.linalg import DiagonalOperator, spectral_density
    >>> from flatmin.measures import density_negative_mass
    >>> A = DiagonalOperator(torch.tensor([-1.0, 1.0, 2.0]))
    >>> density = spectral_density(A, rng=0)
    >>> float(density_negative_mass(density))
    0.25
    """
    if not isinstance(density, SpectralDensity):
        raise TypeError(
            "density must be a SpectralDensity, which spectral_density returns. Got "
            f"{type(density).__name__}."
        )
    negative, _ = density.mean(lambda nodes: (-nodes).clamp(min=0))
    total, _ = density.mean(Tensor.abs)
    if not bool(total > 0):
        raise ValueError(
            "The negative mass is a share of Σ|λ|, which must be above 0. Got "
            f"{float(total)}: the matrix is zero, and its share is 0/0."
        )
    share = negative / total
    # The error of a ratio: that of its numerator less the ratio times the denominator.
    _, error = density.mean(lambda nodes: (-nodes).clamp(min=0) - share * nodes.abs())
    return Estimate(share, error / total, density.n_matvecs)
