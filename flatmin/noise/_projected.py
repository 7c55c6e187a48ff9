"""One law made of another: its noise in H's leading eigenspace, or outside it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.curvature import hessian_eigenpairs
from flatmin.linalg import Estimate, LinearOperator, trace
from flatmin.linalg._operator import knows_its_trace
from flatmin.noise._base import NoiseLaw
from flatmin.noise._full import GLDFull
from flatmin.noise._match import DEFAULT_MATCH_EVERY, MatchedLaw
from flatmin.noise._step import Step, step_for
from flatmin.risk import Risk

__all__ = ["Projected", "ProjectedState"]


@dataclass(frozen=True)
class ProjectedState:
    """The state of the inner law, and the eigenspace."""

    inner: Any
    eigenvectors: Tensor  # (*chains, D, k) U


class Projected(MatchedLaw):
    """C = P C₁ P: another law's noise, on H's top-k eigenspace or its complement.

    P = UUᵀ with U the eigenvectors of the k largest eigenvalues of H (algebraically),
    or I - UUᵀ. A draw computes g₀ as well, to tell ε from it. With
    ``n_components=1`` and ``GLDFull()`` inside it is noise along u₁ alone, of the
    variance u₁ᵀΣu₁/m that SGD's has there.

    Parameters
    ----------
    law : NoiseLaw, default=None
        What draws the noise; None is ``GLDFull()``. It is refreshed together with the
        eigenspace.
    n_components : int, default=None
        k; None is min(20, D - 1).
    keep : {"top", "bulk"}, default="top"
        The eigenspace, or its complement.
    on : {"noise", "step"}, default="noise"
        What is projected: ε alone, or all of g₀ + ε. θ then moves in the subspace
        only, and the mean of the noisy gradient is P g₀.
    batch_size : int, default=None
        m, also of the inner law; None is the law's own.
    noise_scale : float, default=1.0
        Multiplies ε, on top of the inner law's scale.
    match : {"trace", "none", "curvature", "frobenius"}, default="none"
        "none" is what P leaves of C₁, "trace" gives it SGD's Tr(Σ)/m again, times l
        for an inner law of l steps an iteration.
        "curvature" is Tr(HC) = Tr(HΣ)/m, "frobenius" ‖C‖_F = ‖Σ‖_F/m; see
        :class:`MatchedLaw`.
    match_every : int, default=50
        Iterations between two measurements of the factor of the last two.
    refresh_every : int, default=10
        Iterations between two eigendecompositions; noise is drawn at every one.
    tol : float, default=1e-2
        Residual ‖Hu - λu‖ relative to max |λ|.

    References
    ----------
    G. Gur-Ari, D. Roberts and E. Dyer, arXiv 1812.04754, for the top subspace; M. Song,
    K. Ahn and C. Yun, arXiv 2405.16002, for steps in the bulk.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.noise import Projected
    >>> law = Projected(n_components=1, batch_size=1)
    >>> state = law.refresh(risk, theta, torch.Generator().manual_seed(0))
    >>> law.covariance(risk, theta, state).to_dense()  # of Σ = [[5, 5], [5, 10]]
    tensor([[5., 0.],
            [0., 0.]])
    """

    name = "projected"

    def __init__(
        self,
        law: NoiseLaw | None = None,
        *,
        n_components: int | None = None,
        keep: Literal["top", "bulk"] = "top",
        on: Literal["noise", "step"] = "noise",
        batch_size: int | None = None,
        noise_scale: float = 1.0,
        match: Literal["trace", "none", "curvature", "frobenius"] = "none",
        match_every: int = DEFAULT_MATCH_EVERY,
        refresh_every: int = 10,
        tol: float = 1e-2,
    ) -> None:
        self.law = law
        self.n_components = n_components
        self.keep = keep
        self.on = on
        self.batch_size = batch_size
        self.noise_scale = noise_scale
        self.match = match
        self.match_every = match_every
        self.refresh_every = refresh_every
        self.tol = tol

    @property
    def n_substeps(self) -> int:  # type: ignore[override]
        """See :class:`NoiseLaw`; that of the inner law."""
        return self._inner_law().n_substeps

    @property
    def takes_step(self) -> bool:
        """See :attr:`NoiseLaw.takes_step`; that of the inner law."""
        return self._inner_law().takes_step

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; a projected step has the mean P g₀."""
        return self.on == "noise"

    @property
    def has_covariance(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; as the inner law."""
        return self._inner_law().has_covariance

    @property
    def in_parameter_units(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; as the inner law, unless it gets another size."""
        return self.match == "none" and self._inner_law().in_parameter_units

    @property
    def needs_all_examples(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; as the inner law, unless it gets another size."""
        return self.match == "none" and self._inner_law().needs_all_examples

    @property
    def needs_example_gradients(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`; as the inner law, or for a size of its own."""
        return self.match != "none" or self._inner_law().needs_example_gradients

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        if not (self.law is None or isinstance(self.law, NoiseLaw)):
            raise ValueError(
                f"law of projected must be a NoiseLaw, such as GLDFull(). Got "
                f"{self.law!r}; make one by make_noise_law(name)."
            )
        super().check(risk)
        self._check_option("keep", ("top", "bulk"))
        self._check_option("on", ("noise", "step"))
        if self.keep == "bulk" and self._n_components(risk) >= risk.n_params:
            raise ValueError(
                "keep='bulk' of projected needs n_components below the number of "
                f"parameters, {risk.n_params}: nothing is left beside them. Got "
                f"{self._n_components(risk)}."
            )
        inner = self._inner_law()
        if not inner.unbiased and (self.on == "noise" or self.match != "none"):
            raise ValueError(
                f"on='noise', or a match, of projected needs a law whose mean is g₀. "
                f"Got {inner!r}; use on='step' with match='none'."
            )
        if not inner.has_covariance and self.match != "none":
            raise ValueError(
                "A match of projected needs a law with a covariance to scale. Got "
                f"match={self.match!r} and {inner!r}; use match='none'."
            )
        inner.check(risk)

    def check_chains(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check_chains`; as the inner law."""
        self._inner_law().check_chains(risk)

    def _refresh(
        self,
        risk: Risk,
        theta: Tensor,
        rng: torch.Generator,
        previous: Any,
        *,
        step: Step | None = None,
    ) -> ProjectedState:
        refresh: Any = self._inner_law().refresh
        before = previous.inner if isinstance(previous, ProjectedState) else None
        inner = refresh(risk, theta, rng, before, **step_for(refresh, step))
        pairs = hessian_eigenpairs(
            risk, theta, self._n_components(risk), which="LA", tol=self.tol, rng=rng
        )
        return ProjectedState(inner, pairs.eigenvectors)

    def _noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: ProjectedState,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
        step: Step | None = None,
    ) -> tuple[Tensor, Tensor]:
        draw: Any = self._inner_law().noisy_gradient
        step_kwargs = step_for(draw, step)
        loss, gradient = draw(risk, theta, state.inner, rng, **step_kwargs)
        mean = risk.gradient(theta)
        noise = float(self.noise_scale) * self._project(gradient - mean, state)
        if factor is not None:
            noise = factor.unsqueeze(-1) * noise
        if self.on == "step":
            mean = self._project(mean, state)
        return loss, mean + noise

    def _covariance(
        self, risk: Risk, theta: Tensor, state: ProjectedState
    ) -> LinearOperator:
        inner = self._inner_law().covariance(risk, theta, state.inner)
        # What is left of an estimated trace can be all error.
        is_traced = self.keep == "top" or (
            knows_its_trace(inner) and not bool(inner.trace_stderr().any())
        )
        kind = _TracedProjection if is_traced else _Projection
        projected = kind(inner, state.eigenvectors, self.keep)
        return float(self.noise_scale) ** 2 * projected

    def _trace(
        self,
        risk: Risk,
        theta: Tensor,
        state: ProjectedState,
        rng: torch.Generator | int = 0,
    ) -> Estimate:
        law = self._inner_law()
        if not law.has_covariance:
            # The inner trace is infinite. So is that of the projection, because a sum
            # of independent numbers with heavy tails has heavy tails.
            return law.trace_estimate(risk, theta, state.inner)
        covariance = self._covariance(risk, theta, state)
        if knows_its_trace(covariance):
            return Estimate(covariance.trace(), covariance.trace_stderr())
        inner = law.covariance(risk, theta, state.inner)
        top = _TracedProjection(inner, state.eigenvectors, "top").trace()
        found = trace(covariance, rng=rng)
        beside = float(self.noise_scale) ** 2 * top
        is_there = _is_no_rounding(found.value, beside + found.value)
        return Estimate(
            torch.where(is_there, found.value, 0),
            torch.where(is_there, found.stderr, 0),
            found.n_matvecs,
        )

    def _store_state(self, state: ProjectedState | None) -> Any:
        if state is None:
            return None
        inner = self._inner_law().store_state(state.inner)
        return {"inner": inner, "eigenvectors": state.eigenvectors}

    def _restore_state(self, stored: Any, risk: Risk) -> ProjectedState | None:
        if stored is None:
            return None
        inner = self._inner_law().restore_state(stored["inner"], risk)
        return ProjectedState(inner, stored["eigenvectors"])

    def _unbiased_law(self) -> Projected:
        law = copy.copy(self)
        law.on = "noise"
        return law

    def _inner_law(self) -> NoiseLaw:
        """Return the inner law, with the settings that this law decides."""
        law = GLDFull() if self.law is None else copy.copy(self.law)
        if self.batch_size is not None and hasattr(law, "batch_size"):
            law.batch_size = self.batch_size
        law.refresh_every = self.refresh_every  # it counts iterations with it
        return law

    def _batch_size(self, risk: Risk) -> int:
        if hasattr(self._inner_law(), "batch_size"):
            return self._inner_law()._batch_size(risk)
        return super()._batch_size(risk)

    def _n_components(self, risk: Risk) -> int:
        if self.n_components is None:
            return max(1, min(super()._n_components(risk), risk.n_params - 1))
        return int(self.n_components)

    def _project(self, v: Tensor, state: ProjectedState) -> Tensor:
        return _project(v, state.eigenvectors, self.keep)


def _project(v: Tensor, U: Tensor, keep: str) -> Tensor:
    top: Tensor = (U @ (U.mT @ v.unsqueeze(-1))).squeeze(-1)
    return top if keep == "top" else v - top


class _Projection(LinearOperator):
    """P A P."""

    def __init__(self, operator: LinearOperator, U: Tensor, keep: str) -> None:
        super().__init__(
            operator.shape[-1],
            chains=tuple(operator.shape[:-2]),
            dtype=operator.dtype,
            device=operator.device,
        )
        self.operator = operator
        self.U, self.keep = U, keep

    def _matvec(self, v: Tensor) -> Tensor:
        return self._project(self.operator.matvec(self._project(v)))

    def to_dense(self) -> Tensor:
        """See :meth:`LinearOperator.to_dense`; by that of A."""
        columns = self.operator.to_dense().unbind(-1)
        half = torch.stack([self._project(column) for column in columns], dim=-2)
        rows = half.unbind(-1)
        return torch.stack([self._project(row) for row in rows], dim=-1)

    def _project(self, v: Tensor) -> Tensor:
        return _project(v, self.U, self.keep)


class _TracedProjection(_Projection):
    """P A P on the top, or of an A that knows its trace."""

    def trace(self) -> Tensor:
        """See :meth:`LinearOperator.trace`; k products."""
        columns = self.U.unbind(-1)
        parts = [
            (u.double() * self.operator.matvec(u).double()).sum(-1) for u in columns
        ]
        kept = torch.stack(parts).sum(0)
        if self.keep == "bulk":
            total = self.operator.trace()
            rest = total.double() - kept
            kept = torch.where(_is_no_rounding(rest, total), rest, 0)
        return kept.to(self.dtype)


def _is_no_rounding(rest: Tensor, total: Tensor) -> Tensor:
    """Return where a part is more than what rounding leaves of nothing.

    Parameters
    ----------
    rest, total : Tensor of shape (\\*chains)
        The part, which a match would scale up, and the whole.

    Returns
    -------
    Tensor of bool of shape (\\*chains)
    """
    return rest > 1e3 * torch.finfo(total.dtype).eps * total
