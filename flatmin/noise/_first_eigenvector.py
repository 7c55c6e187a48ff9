"""Noise along the sharpest direction alone."""

from __future__ import annotations

from typing import Literal

from flatmin.linalg import Which
from flatmin.noise._match import DEFAULT_MATCH_EVERY
from flatmin.noise._spectral import HessianSpectrumLaw
from flatmin.risk import Risk

__all__ = ["GLDFirstEigenvector"]


class GLDFirstEigenvector(HessianSpectrumLaw):
    """GLD first eigenvector, C = Tr(Σ)/m u₁u₁ᵀ, u₁ of the largest eigenvalue of H.

    All of SGD's noise in one direction. Noise along u₁ of the variance that SGD's has
    there, u₁ᵀΣu₁/m, is ``Projected(n_components=1)``.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none", "curvature", "frobenius"}, default="trace"
        "none" is C = |λ₁| u₁u₁ᵀ;
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=10
        Iterations between two computations of u₁; noise is drawn at every one.
    tol : float, default=1e-2
        Residual ‖Hu - λu‖ relative to max |λ|.

    References
    ----------
    Z. Zhu et al., ICML 2019, the second version of arXiv 1803.00195.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import GLDFirstEigenvector
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDFirstEigenvector(batch_size=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[15.,  0.],
            [ 0.,  0.]])
    """

    name = "gld_first_eigenvector"
    which: Which = "LA"

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature", "frobenius"] = "trace",
        match_every: int = DEFAULT_MATCH_EVERY,
        refresh_every: int = 10,
        tol: float = 1e-2,
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.match_every = match_every
        self.refresh_every = refresh_every
        self.tol = tol

    def _n_components(self, risk: Risk) -> int:
        return 1
