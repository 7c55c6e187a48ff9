"""Noise that follows the Hessian."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flatmin.curvature import covariance_trace, hessian_trace
from flatmin.noise._spectral import HessianSpectrumLaw
from flatmin.risk import Risk

__all__ = ["GLDHessian"]


class GLDHessian(HessianSpectrumLaw):
    """GLD Hessian, C = σ_H² Σ_{i≤k} |λᵢ| uᵢuᵢᵀ, eigenpairs of largest magnitude.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    n_components : int, default=None
        k; None is min(20, D).
    match : {"trace", "hessian_trace", "none"}, default="trace"
        σ_H² = Tr(Σ)/(m Σ_{i≤k} |λᵢ|), so that E‖ε‖² is SGD's; the text's
        Tr(Σ)/(m Tr(H)), an error where Tr(H) ≤ 0; or 1.
    refresh_every : int, default=10
        Iterations between two eigendecompositions; noise is drawn at every one.
    tol : float, default=1e-2
        Residual ‖Hu - λu‖ relative to max |λ|.

    References
    ----------
    Section 4.2, item 6, and section 5.1 of arXiv 1803.00195. The authors' released
    code divides by the signed sum of the λᵢ; the text's normaliser is Tr(H).
    """

    name = "gld_hessian"

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        n_components: int | None = None,
        match: Literal["trace", "hessian_trace", "none"] = "trace",
        refresh_every: int = 10,
        tol: float = 1e-2,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            noise_scale=noise_scale,
            n_components=n_components,
            refresh_every=refresh_every,
            tol=tol,
        )
        self.match = match

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        self._check_option("match", ("trace", "hessian_trace", "none"))

    def _variance(
        self, risk: Risk, theta: Tensor, magnitudes: Tensor, rng: torch.Generator
    ) -> Tensor:
        if self.match == "none":
            return torch.ones_like(magnitudes[..., 0])
        if self.match == "trace":
            return super()._variance(risk, theta, magnitudes, rng)
        trace = hessian_trace(risk, theta, rng).value.double()
        if bool((trace <= 0).any()):
            raise ValueError(
                "match='hessian_trace' divides by Tr(H), which must be positive. Got "
                f"{float(trace.min()):.3g} at this point; use match='trace'."
            )
        return covariance_trace(risk, theta) / (self._batch_size(risk) * trace)
