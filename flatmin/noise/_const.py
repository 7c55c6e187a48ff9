"""Isotropic noise of constant size."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.linalg import ScaledIdentityOperator
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedGaussianLaw
from flatmin.risk import Risk

__all__ = ["GLDConst"]


class GLDConst(MatchedGaussianLaw):
    """GLD const, C = σ² I: Langevin dynamics with a tuned σ, not trace-matched.

    Parameters
    ----------
    sigma : float, default=1e-3
        σ in gradient units; the paper's value for Fashion-MNIST.
    batch_size : int, default=None
        m, for a match; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    match : {"trace", "none", "curvature"}, default="none"
        "trace" and "curvature" leave nothing of σ but its direction: C is then
        gld_dynamic's, or I scaled so;
        "curvature" is Tr(HC) = Tr(HΣ)/m; see :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of "curvature".

    References
    ----------
    Section 4.2, item 2 of arXiv 1803.00195.
    """

    name = "gld_const"

    def __init__(
        self,
        *,
        sigma: float = 1e-3,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature"] = "none",
        match_every: int = DEFAULT_MATCH_EVERY,
    ) -> None:
        self.sigma = sigma
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.match_every = match_every

    def _refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any
    ) -> ScaledIdentityOperator:
        variance = (float(self.noise_scale) * float(self.sigma)) ** 2
        scale = theta.new_full(theta.shape[:-1], variance)
        return ScaledIdentityOperator(scale, risk.n_params)
