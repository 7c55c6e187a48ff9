"""Control: the Hessian's subspace without its order."""

from __future__ import annotations

from torch import Tensor

from flatmin.linalg import Eigenpairs
from flatmin.noise._spectral import HessianSpectrumLaw

__all__ = ["GLDShuffled"]


class GLDShuffled(HessianSpectrumLaw):
    """H's top-k eigenvectors with their magnitudes in reverse order.

    Like ``gld_hessian`` in subspace and trace, but loudest along the flattest of the
    k directions.

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
    >>> from flatmin.noise import GLDShuffled
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDShuffled(batch_size=1, n_components=2)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[ 3.,  0.],
            [ 0., 12.]])
    """

    name = "gld_shuffled"

    def _magnitudes_and_directions(self, pairs: Eigenpairs) -> tuple[Tensor, Tensor]:
        return pairs.eigenvalues.abs().flip(-1), pairs.eigenvectors
