"""How large a law's noise is: as SGD's by one of three sizes, or as it comes."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from flatmin._utils.numbers import check_count
from flatmin.curvature import (
    GradientCovarianceOperator,
    HessianOperator,
    covariance_trace,
)
from flatmin.linalg import Estimate, LinearOperator
from flatmin.noise._base import GaussianLaw, NoiseLaw
from flatmin.noise._match_frobenius import frobenius_norms
from flatmin.noise._step import Step, declares_step, step_for
from flatmin.risk import AnalyticRisk, Risk

__all__ = ["MatchedGaussianLaw", "MatchedLaw", "MatchedState", "UndefinedNoiseError"]

DEFAULT_MATCH_EVERY = 50

# So many draws for each of the two traces, with a product H ε each. Where D is not
# larger than both together, as many products give both traces exactly.
_N_DRAWS = 30


class UndefinedNoiseError(ArithmeticError):
    """A law's noise has no size at this θ; training ends there, with the reason.

    Examples
    --------
    >>> from flatmin.noise import UndefinedNoiseError
    >>> issubclass(UndefinedNoiseError, ArithmeticError)
    True
    """


@dataclass(frozen=True)
class MatchedState:
    """A law's own state, and the factor c that gives its noise another size.

    Examples
    --------
    >>> import torch
    >>> from flatmin.noise import MatchedState
    >>> MatchedState(None, torch.tensor(2.0), torch.tensor(0.1), 0).factor
    tensor(2.)
    """

    inner: Any
    factor: Tensor  # (*chains) c, of ε
    stderr: Tensor  # (*chains) of c; 0 where nothing is drawn
    age: int  # iterations since c was measured, at the last refresh


class MatchedLaw(NoiseLaw):
    """A law that has a size of its own and can be given another.

    A subclass writes ``_refresh``, ``_noisy_gradient`` and ``_covariance`` for its own
    size; its constructor has ``batch_size``, ``noise_scale``, ``match`` and
    ``match_every``. With C₀ the covariance as it comes, ``match`` is

    - "none": C₀.
    - "trace": C₀ scaled to Tr(C) = Tr(Σ)/m, 0 where C₀ is.
      With ``n_substeps`` l > 1 this is, as Tr(HC) below, times l: C is that of one of
      l steps at η/l.
    - "curvature": C₀ scaled to Tr(HC) = Tr(HΣ)/m, so that a small step's noise raises
      the loss as much as SGD's does, to second order. The factor is measured every
      ``match_every`` iterations, at the refresh that is due then, and holds in between
      for a C₀ that is refreshed as ever. It is exact on an analytic risk and for up to
      60 parameters; else both traces are means of εᵀHε over 30 draws, and the standard
      error of the factor is in the state. Where one of them is not positive
      :class:`UndefinedNoiseError` is raised.
    - "frobenius": C₀ scaled to ‖C‖_F = ‖Σ‖_F/m, 0 where C₀ is. Measured as often as for
      "curvature", and exact where that is; else from 30 products with each matrix.

    All are times the square of ``noise_scale`` in the end.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.noise import GLDDynamic
    >>> law = GLDDynamic(batch_size=1, match="none")
    >>> state = law.refresh(risk, theta, torch.Generator())
    >>> law.covariance(risk, theta, state).trace()
    tensor(15.)
    """

    matches: ClassVar[tuple[str, ...]] = ("trace", "none", "curvature", "frobenius")
    # Whether C₀ is made of the gᵢ. The size of SGD's noise, which others are given by a
    # match, always is.
    _made_of_examples: ClassVar[bool] = False
    # Those for which ``_refresh`` returns a state of the right size already.
    _matched_by_refresh: ClassVar[tuple[str, ...]] = ("none",)
    _state_class: ClassVar[type | None] = None  # of states stored as their attributes

    batch_size: int | None
    noise_scale: float
    match: str
    match_every: int

    @abstractmethod
    def _noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: Any,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and g₀ + c ε; c of shape (\\*chains), None for 1."""

    @abstractmethod
    def _covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """Return the covariance of ε."""

    def _refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any
    ) -> Any:
        """Return the law's own state."""
        return None

    def _trace(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator | int = 0
    ) -> Estimate:
        """Return Tr C₀; the generator is for what is estimated."""
        operator = self._covariance(risk, theta, state)
        return Estimate(operator.trace(), operator.trace_stderr())

    def _unchecked_trace(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> Estimate:
        """Return the trace without waiting for the device to look for NaN."""
        return self._trace(risk, theta, state, rng)

    def _store_state(self, state: Any) -> Any:
        if state is None or self._state_class is None:
            return NoiseLaw.store_state(self, state)
        return dict(vars(state))

    def _restore_state(self, stored: Any, risk: Risk) -> Any:
        kind = self._state_class
        return stored if stored is None or kind is None else kind(**stored)

    def _unbiased_law(self) -> MatchedLaw:
        """Return a law of the same covariance whose draws have the mean g₀."""
        return self

    def _share_of_sgd(self, risk: Risk) -> float | None:
        """Return f if C₀ = f Σ/m at every θ. Then a match needs no measurement."""
        return None

    @property
    def needs_example_gradients(self) -> bool:  # type: ignore[override]
        """See :class:`NoiseLaw`."""
        return self._made_of_examples or self.match != "none"

    @property
    def takes_step(self) -> bool:
        """See :attr:`NoiseLaw.takes_step`; this class itself only hands a step on."""
        kind = type(self)
        refresh: Any = self.refresh
        draw: Any = self.noisy_gradient
        if kind.refresh is MatchedLaw.refresh:
            refresh = self._refresh
        if kind.noisy_gradient is MatchedLaw.noisy_gradient:
            draw = self._noisy_gradient
        return declares_step(refresh) or declares_step(draw)

    def check(self, risk: Risk) -> None:
        """See :meth:`NoiseLaw.check`."""
        super().check(risk)
        self._check_option("match", self.matches)
        check_count(f"match_every of {self.name}", self.match_every)

    def refresh(
        self,
        risk: Risk,
        theta: Tensor,
        rng: torch.Generator,
        previous: Any = None,
        *,
        step: Step | None = None,
    ) -> Any:
        """See :meth:`NoiseLaw.refresh`."""
        before = previous.inner if isinstance(previous, MatchedState) else previous
        step_kwargs: dict[str, Any] = step_for(self._refresh, step)
        inner = self._refresh(risk, theta, rng, before, **step_kwargs)
        if self.match in self._matched_by_refresh:
            return inner
        zero = theta.new_zeros(theta.shape[:-1])
        share = self._share_of_sgd(risk)
        if share is not None:
            if share == 1:
                return inner
            return MatchedState(inner, zero + share**-0.5, zero, 0)
        if self.match == "trace":
            target = covariance_trace(risk, theta, check=False)
            own = self._unchecked_trace(risk, theta, inner, rng)
            per_step = int(self.n_substeps) / self._batch_size(risk)
            exact = (target * per_step, torch.zeros_like(target))
            return self._scaled(risk, inner, exact, (own.value, own.stderr))
        if isinstance(previous, MatchedState):
            age = previous.age + int(self.refresh_every)
            if age < int(self.match_every):
                return replace(previous, inner=inner, age=age)
        if self.noise_scale == 0:
            return MatchedState(inner, zero, zero, 0)
        if self.match == "frobenius":
            return self._match_frobenius(risk, theta, inner, rng)
        return self._match_curvature(risk, theta, inner, rng, step=step)

    def noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: Any,
        rng: torch.Generator,
        *,
        step: Step | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`NoiseLaw.noisy_gradient`."""
        factor = None
        if isinstance(state, MatchedState):
            state, factor = state.inner, state.factor
        step_kwargs: dict[str, Any] = step_for(self._noisy_gradient, step)
        return self._noisy_gradient(
            risk, theta, state, rng, factor=factor, **step_kwargs
        )

    def covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """See :meth:`NoiseLaw.covariance`."""
        if isinstance(state, MatchedState):
            own = self._covariance(risk, theta, state.inner)
            return state.factor.square() * own
        return self._covariance(risk, theta, state)

    def trace(self, risk: Risk, theta: Tensor, state: Any) -> Tensor:
        """See :meth:`NoiseLaw.trace`."""
        return self.trace_estimate(risk, theta, state).value

    def trace_estimate(self, risk: Risk, theta: Tensor, state: Any) -> Estimate:
        """See :meth:`NoiseLaw.trace_estimate`."""
        if isinstance(state, MatchedState):
            own, squared = self._trace(risk, theta, state.inner), state.factor.square()
            return Estimate(squared * own.value, squared * own.stderr)
        return self._trace(risk, theta, state)

    def store_state(self, state: Any) -> Any:
        """See :meth:`NoiseLaw.store_state`."""
        if not isinstance(state, MatchedState):
            return self._store_state(state)
        return {"matched": {**vars(state), "inner": self._store_state(state.inner)}}

    def restore_state(self, stored: Any, risk: Risk) -> Any:
        """See :meth:`NoiseLaw.restore_state`."""
        if not (isinstance(stored, dict) and "matched" in stored):
            return self._restore_state(stored, risk)
        parts = stored["matched"]
        inner = self._restore_state(parts["inner"], risk)
        return MatchedState(**{**parts, "inner": inner})

    def _match_curvature(
        self,
        risk: Risk,
        theta: Tensor,
        inner: Any,
        rng: torch.Generator,
        *,
        step: Step | None,
    ) -> MatchedState:
        """Measure c² = Tr(HΣ)/m over Tr(HC₀)."""
        if _is_small(risk):
            found = self._exact_curvatures(risk, theta, inner)
        else:
            found = self._sampled_curvatures(risk, theta, inner, rng, step=step)
        (sgd, sgd_error), (own, own_error) = found
        if not bool(((sgd > 0) & (own > 0)).all()):
            raise UndefinedNoiseError(
                f"match='curvature' of {self.name} scales its noise to Tr(HC) = "
                "Tr(HΣ)/m, and both must be positive. Got "
                f"{_smallest(sgd, sgd_error)} of SGD's noise and "
                f"{_smallest(own, own_error)} of the law's at this point; "
                "use match='trace', or begin where the curvature that the noise meets "
                "is positive."
            )
        return self._scaled(risk, inner, (sgd, sgd_error), (own, own_error))

    def _match_frobenius(
        self, risk: Risk, theta: Tensor, inner: Any, rng: torch.Generator
    ) -> MatchedState:
        """Measure c² = ‖Σ‖_F/m over ‖C₀‖_F."""
        n_probes = None if _is_small(risk) else _N_DRAWS
        sigma = GradientCovarianceOperator(risk, theta)
        sgd = frobenius_norms(sigma, n_probes, rng)
        own = frobenius_norms(self._covariance(risk, theta, inner), n_probes, rng)
        per_step = int(self.n_substeps) / self._batch_size(risk)
        return self._scaled(risk, inner, (sgd[0] * per_step, sgd[1] * per_step), own)

    def _scaled(
        self,
        risk: Risk,
        inner: Any,
        sgd: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
    ) -> MatchedState:
        """Return the state with c² = SGD's size over the law's own."""
        factor = float(self.noise_scale) * (sgd[0] / own[0]).sqrt()
        relative = torch.hypot(sgd[1] / sgd[0], own[1] / own[0]) / 2
        pair = (
            torch.where((sgd[0] > 0) & (own[0] > 0), x, 0)
            for x in (factor, factor * relative)
        )
        factor, stderr = (x.to(risk.dtype) for x in pair)
        return MatchedState(inner, factor, stderr, 0)

    def _exact_curvatures(
        self, risk: Risk, theta: Tensor, inner: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        hessian = HessianOperator(risk, theta).to_dense().double()
        covariance = GradientCovarianceOperator(risk, theta).to_dense()
        own = self._covariance(risk, theta, inner).to_dense()
        per_step = int(self.n_substeps) / self._batch_size(risk)
        sgd = (hessian * covariance).sum((-2, -1)) * per_step
        zero = torch.zeros_like(sgd)
        return (sgd, zero), ((hessian * own).sum((-2, -1)), zero)

    def _sampled_curvatures(
        self,
        risk: Risk,
        theta: Tensor,
        inner: Any,
        rng: torch.Generator,
        *,
        step: Step | None = None,
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        hessian = HessianOperator(risk, theta)
        n, m = risk.n_examples, self._batch_size(risk)
        scale = (int(self.n_substeps) * n / m) ** 0.5
        step_kwargs: dict[str, Any] = step_for(self._noisy_gradient, step)
        mean = risk.gradient(theta)
        unbiased = self._unbiased_law()
        covariance: Any = self._covariance(risk, theta, inner)
        state = None
        if not hasattr(covariance, "sample"):
            state = copy.deepcopy(inner)  # because a draw may change the state

        def sgd() -> Tensor:
            shape = (*theta.shape[:-1], n)
            z = torch.randn(shape, generator=rng, dtype=risk.dtype, device=risk.device)
            return risk.weighted_gradient(theta, (z - z.mean(-1, keepdim=True)) * scale)

        def own() -> Tensor:
            if hasattr(covariance, "sample"):
                draw: Tensor = covariance.sample(rng)
                return draw
            noisy = unbiased._noisy_gradient(
                risk, theta, state, rng, factor=None, **step_kwargs
            )
            return noisy[1] - mean

        def curvature(draw: Any) -> tuple[Tensor, Tensor]:
            forms = []
            for _ in range(_N_DRAWS):
                noise = draw()
                product = hessian @ noise
                forms.append((noise.double() * product.double()).sum(-1))
            values = torch.stack(forms)
            return values.mean(0), values.std(0) / _N_DRAWS**0.5

        return curvature(sgd), curvature(own)


class MatchedGaussianLaw(MatchedLaw, GaussianLaw):
    """A law whose own state is the covariance of its own size.

    A subclass writes ``_refresh`` alone; see :class:`GaussianLaw`.

    Examples
    --------
    >>> from flatmin.noise import GLDDiagonal, MatchedGaussianLaw
    >>> isinstance(GLDDiagonal(), MatchedGaussianLaw)
    True
    """

    def _noisy_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        state: Any,
        rng: torch.Generator,
        *,
        factor: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if factor is None:
            return GaussianLaw.noisy_gradient(self, risk, theta, state, rng)
        loss, gradient = risk.value_and_gradient(theta)
        return loss, gradient + factor.unsqueeze(-1) * state.sample(rng)

    def _covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        return GaussianLaw.covariance(self, risk, theta, state)

    def _store_state(self, state: Any) -> Any:
        return GaussianLaw.store_state(self, state)

    def _restore_state(self, stored: Any, risk: Risk) -> Any:
        return GaussianLaw.restore_state(self, stored, risk)


def _is_small(risk: Risk) -> bool:
    """Return whether a size is exact: by D products, or by closed forms."""
    return isinstance(risk, AnalyticRisk) or risk.n_params <= 2 * _N_DRAWS


def _smallest(value: Tensor, stderr: Tensor) -> str:
    """Return the smallest of the chains' values, with its standard error."""
    at = value.flatten().argmin()
    return f"{float(value.flatten()[at]):.3g} ± {float(stderr.flatten()[at]):.2g}"
