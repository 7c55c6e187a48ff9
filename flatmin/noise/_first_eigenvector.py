"""Noise along the sharpest direction alone."""

from __future__ import annotations

from flatmin.linalg import Which
from flatmin.noise._spectral import HessianSpectrumLaw
from flatmin.risk import Risk

__all__ = ["GLDFirstEigenvector"]


class GLDFirstEigenvector(HessianSpectrumLaw):
    """GLD first eigenvector, C = Tr(Σ)/m u₁u₁ᵀ, u₁ of the largest eigenvalue of H.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    refresh_every : int, default=10
        Iterations between two computations of u₁; noise is drawn at every one.
    tol : float, default=1e-2
        Residual ‖Hu - λu‖ relative to max |λ|.

    References
    ----------
    Z. Zhu et al., ICML 2019, the second version of arXiv 1803.00195.
    """

    name = "gld_first_eigenvector"
    which: Which = "LA"

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        refresh_every: int = 10,
        tol: float = 1e-2,
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.refresh_every = refresh_every
        self.tol = tol

    def _n_components(self, risk: Risk) -> int:
        return 1
