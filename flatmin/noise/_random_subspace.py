"""Control: the Hessian's spectrum without its directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatmin.linalg import LowRankOperator
from flatmin.noise._spectral import HessianSpectrumLaw
from flatmin.risk import Risk

__all__ = ["GLDRandomSubspace"]


class GLDRandomSubspace(HessianSpectrumLaw):
    """H's top-k magnitudes on k orthonormal random directions, drawn once a run.

    Like ``gld_hessian`` in spectrum and trace, unlike it in alignment. The directions
    are the Q of one ``torch.randn(D, k)`` in float64, the first thing that the first
    refresh draws: the same seed gives the same ones whatever solver finds the spectrum.
    Each fit of an estimator is a run, so a warm start draws others.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    n_components : int, default=None
        k; None is min(20, D).
    match : {"trace", "none", "curvature", "frobenius"}, default="trace"
        "none" is the magnitudes of H as they come, σ = 1;
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=10
        Iterations between two eigendecompositions; noise is drawn at every one.
    tol : float, default=1e-2
        Residual ‖Hu - λu‖ relative to max |λ|.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import GLDRandomSubspace
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDRandomSubspace(batch_size=1, n_components=2)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense().trace()
    tensor(15.0000)
    """

    name = "gld_random_subspace"

    def _refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any
    ) -> LowRankOperator:
        if isinstance(previous, LowRankOperator):
            directions = previous.eigenvectors
        else:
            directions = self._draw_directions(risk, theta, rng)
        spectrum = self._low_rank(risk, theta, rng)
        return LowRankOperator(spectrum.eigenvalues, directions)

    def _draw_directions(
        self, risk: Risk, theta: Tensor, rng: torch.Generator
    ) -> Tensor:
        shape = (*theta.shape, self._n_components(risk))
        gaussian = torch.randn(
            shape, generator=rng, dtype=torch.float64, device=risk.device
        )
        directions: Tensor = torch.linalg.qr(gaussian).Q.to(risk.dtype)
        return directions
