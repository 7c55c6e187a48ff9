"""Noise that follows the Hessian."""

from __future__ import annotations

from typing import Any, Literal

import torch
from sklearn.base import clone
from torch import Tensor

from flatmin.curvature import HessianOperator, covariance_trace, hessian_trace
from flatmin.linalg import (
    AbsoluteOperator,
    Estimate,
    LinearOperator,
    spectral_density,
)
from flatmin.noise._match import DEFAULT_MATCH_EVERY
from flatmin.noise._spectral import HessianSpectrumLaw
from flatmin.risk import AnalyticRisk, Risk

__all__ = ["GLDHessian"]

# Up to here D products with H for all eigenpairs cost no more than the products of
# the draws between two refreshes.
_LARGEST_DENSE = 1000

# Probes of the quadrature for Tr|H|, with 60 products each.
_N_PROBES = 5


class GLDHessian(HessianSpectrumLaw):
    """GLD Hessian, C = σ_H² Σ_{i≤k} |λᵢ| uᵢuᵢᵀ, eigenpairs of largest magnitude.

    Parameters
    ----------
    batch_size : int, default=None
        m; None is min(20, N).
    noise_scale : float, default=1.0
        Multiplies ε.
    n_components : int or "full", default=None
        k; None is min(20, D). "full" takes the whole spectrum, C = σ_H² |H|: by a
        dense decomposition for D ≤ 1000 or an analytic risk, else by Lanczos without
        eigenvectors. A draw then takes some 170 products with H, for a relative error
        of 5 %, and a refresh 300, which leaves Tr|H| a standard error of a few percent.
    match : str, default="trace"
        "trace", "hessian_trace", "none", "curvature" or "frobenius":
        σ_H² = Tr(Σ)/(m Σ_{i≤k} |λᵢ|), so that E‖ε‖² is SGD's; the text's
        Tr(Σ)/(m Tr(H)), an error where Tr(H) ≤ 0; or 1. "curvature" is
        Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=10
        Iterations between two eigendecompositions; noise is drawn at every one.
    tol : float, default=1e-2
        Residual ‖Hu - λu‖ relative to max |λ|.

    References
    ----------
    Section 4.2, item 6, and section 5.1 of arXiv 1803.00195. The authors' released
    code divides by the signed sum of the λᵢ; the text's normaliser is Tr(H).

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import GLDHessian
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta, rng = torch.zeros(2), torch.Generator().manual_seed(0)
    >>> law = GLDHessian(batch_size=1, n_components=1)  # Σ is [[5, 5], [5, 10]]
    >>> state = law.refresh(risk, theta, rng)
    >>> law.covariance(risk, theta, state).to_dense()
    tensor([[15.,  0.],
            [ 0.,  0.]])
    """

    name = "gld_hessian"
    matches = ("trace", "hessian_trace", "none", "curvature", "frobenius")
    _matched_by_refresh = ("trace", "hessian_trace", "none")

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        n_components: int | Literal["full"] | None = None,
        match: Literal[
            "trace", "hessian_trace", "none", "curvature", "frobenius"
        ] = "trace",
        match_every: int = DEFAULT_MATCH_EVERY,
        refresh_every: int = 10,
        tol: float = 1e-2,
    ) -> None:
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.n_components = n_components
        self.match = match
        self.match_every = match_every
        self.refresh_every = refresh_every
        self.tol = tol

    def _refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any
    ) -> LinearOperator:
        if not self._full or _is_dense(risk):
            return super()._refresh(risk, theta, rng, previous)
        if theta.ndim > 1:
            self.check_chains(risk)
        hessian = HessianOperator(risk, theta)
        density = spectral_density(hessian, n_probes=_N_PROBES, n_steps=60, rng=rng)
        trace, stderr = (risk.n_params * x for x in density.mean(torch.abs))
        variance = self._variance(risk, theta, trace.unsqueeze(-1), rng)
        factor = variance * float(self.noise_scale) ** 2
        found = Estimate(factor * trace, factor * stderr)
        return _ScaledMagnitude(hessian, factor.to(risk.dtype), found)

    def _store_state(self, state: Any) -> Any:
        if not isinstance(state, _ScaledMagnitude):
            return super()._store_state(state)
        return {
            "theta": state.hessian.theta,
            "factor": state.factor,
            "trace": state.trace(),
            "trace_stderr": state.trace_stderr(),
        }

    def _restore_state(self, stored: Any, risk: Risk) -> Any:
        if stored is None or "theta" not in stored:
            return super()._restore_state(stored, risk)
        hessian = HessianOperator(risk, stored["theta"])
        trace = Estimate(stored["trace"], stored["trace_stderr"])
        return _ScaledMagnitude(hessian, stored["factor"], trace)

    @property
    def _full(self) -> bool:
        return isinstance(self.n_components, str) and self.n_components == "full"

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        law = self
        if self._full:
            law = clone(self).set_params(n_components=None)
        super(GLDHessian, law).check(risk)

    def check_chains(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check_chains`."""
        if self._full and not _is_dense(risk):
            raise ValueError(
                "n_components='full' of gld_hessian takes one θ at a time where there "
                f"are more than {_LARGEST_DENSE} parameters. Got many chains of "
                f"{risk.n_params}; use a number of components, or run one chain after "
                "the other."
            )

    def _n_components(self, risk: Risk) -> int:
        if self._full:
            return risk.n_params
        return super()._n_components(risk)

    def _variance(
        self, risk: Risk, theta: Tensor, magnitudes: Tensor, rng: torch.Generator
    ) -> Tensor:
        if self.match != "hessian_trace":
            return super()._variance(risk, theta, magnitudes, rng)
        trace = hessian_trace(risk, theta, rng=rng).value.double()
        if bool((trace <= 0).any()):
            raise ValueError(
                "match='hessian_trace' divides by Tr(H), which must be positive. Got "
                f"{float(trace.min()):.3g} at this point; use match='trace'."
            )
        return covariance_trace(risk, theta, check=False) / (
            self._batch_size(risk) * trace
        )


def _is_dense(risk: Risk) -> bool:
    return isinstance(risk, AnalyticRisk) or risk.n_params <= _LARGEST_DENSE


class _ScaledMagnitude(AbsoluteOperator):
    """|c H|, and what it is made of."""

    def __init__(
        self, hessian: HessianOperator, factor: Tensor, trace: Estimate
    ) -> None:
        super().__init__(hessian * factor, trace.value, trace_stderr=trace.stderr)
        self.hessian = hessian
        self.factor = factor
