"""What a noise law is, and what its settings must satisfy."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from flatmin._runs.storable import as_storable
from flatmin._utils.numbers import (
    check_count,
    check_held_by,
    check_positive,
    is_count,
)
from flatmin.linalg import (
    Estimate,
    LinearOperator,
    operator_from_storable,
    operator_to_storable,
)
from flatmin.noise._step import Step, declares_step, step_for
from flatmin.risk import Risk
from flatmin.risk.arguments import check_risk

__all__ = ["GaussianLaw", "NoiseLaw"]

DEFAULT_BATCH_SIZE = 20
DEFAULT_N_COMPONENTS = 20


class NoiseLaw(BaseEstimator, ABC):
    """The noise ε of a gradient: its mean is 0, its covariance C(θ) in gradient units.

    A law holds settings only. :meth:`refresh` prepares a point θ and returns the law's
    *state* there. The caller keeps the state and gives it to :meth:`noisy_gradient`.
    So one law serves many runs and threads. Every constructor argument is a
    scikit-learn parameter. A θ of shape (\\*chains, D) is one point for each chain;
    the risk must allow that.

    Some noise depends on the iteration or on η: annealed noise does, and so does noise
    in parameter units. For that ``refresh`` or ``noisy_gradient`` declares a keyword
    ``step`` and receives a :class:`Step`. Laws that do not declare it are called
    without it. ::

        def noisy_gradient(self, risk, theta, state, rng, *, step): ...

    Attributes
    ----------
    name : str
        The name under which :func:`make_noise_law` knows it.
    refresh_every : int
        A training loop calls ``refresh`` again after that many iterations.
    n_substeps : int
        l: an iteration of a training loop is l steps at η/l. 1 for all but ``svag``.
    unbiased : bool
        Whether the mean of the noisy gradient is g₀.
    has_covariance : bool
        Whether ε has a covariance. Heavy-tailed noise has none.
    in_parameter_units : bool
        Whether a setting gives the size of η ε, the noise in the parameters. That
        holds for a step θ - η g only, so other optimizers are refused.
    needs_all_examples : bool
        Whether the noise is right only where an iteration sees all examples.
    needs_example_gradients : bool
        Whether the noise, or its size, is made of the gᵢ. Under
        ``batch_norm="batch"`` a risk has none, and :meth:`check` refuses the law.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.linalg import ScaledIdentityOperator
    >>> from flatmin.noise import NoiseLaw
    >>> class Shake(NoiseLaw):
    ...     name = "shake"
    ...     def noisy_gradient(self, risk, theta, state, rng):
    ...         loss, gradient = risk.value_and_gradient(theta)
    ...         return loss, gradient + torch.randn(theta.shape, generator=rng)
    ...     def covariance(self, risk, theta, state):
    ...         return ScaledIdentityOperator(torch.ones(()), theta.shape[-1])
    >>> rng = torch.Generator().manual_seed(0)
    >>> loss, gradient = Shake().noisy_gradient(risk, theta, None, rng)
    >>> gradient.shape
    torch.Size([2])
    """

    name: ClassVar[str]
    refresh_every: int = 1
    n_substeps: int = 1
    unbiased: bool = True
    has_covariance: bool = True
    in_parameter_units: bool = False
    needs_all_examples: bool = False
    needs_example_gradients: bool = False
    # Numbers that may be None; then the law has another setting in their place.
    _optional: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A parent's refreshed_gradient does not call a subclass's new refresh.
        for base in cls.__mro__:
            if "refreshed_gradient" in vars(base):
                break
            if vars(base).keys() & {"refresh", "noisy_gradient"}:
                cls.refreshed_gradient = NoiseLaw.refreshed_gradient  # type: ignore[method-assign]
                break

    @property
    def takes_step(self) -> bool:
        """Whether a method wants a :class:`Step`; else a loop need not make one."""
        return declares_step(self.refresh) or declares_step(self.noisy_gradient)

    @abstractmethod
    def noisy_gradient(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and g₀ + ε.

        Parameters
        ----------
        risk : Risk
        theta : Tensor of shape (\\*chains, D)
        state : object
            From :meth:`refresh`.
        rng : torch.Generator
            On the risk's device.

        Returns
        -------
        loss : Tensor of shape (\\*chains)
            L(θ) without noise; for minibatches the loss of the batch.
        gradient : Tensor of shape (\\*chains, D)
        """

    @abstractmethod
    def covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """Return C(θ), the covariance of what :meth:`noisy_gradient` adds.

        Parameters
        ----------
        risk : Risk
        theta : Tensor of shape (\\*chains, D)
        state : object
            From :meth:`refresh`.

        Returns
        -------
        LinearOperator of shape (\\*chains, D, D)
        """

    def refresh(
        self, risk: Risk, theta: Tensor, rng: torch.Generator, previous: Any = None
    ) -> Any:
        """Prepare θ: the expensive part of a law.

        Parameters
        ----------
        risk : Risk
        theta : Tensor of shape (\\*chains, D)
        rng : torch.Generator
            On the risk's device.
        previous : object, default=None
            The last state of this law in this run. What is drawn once a run is in it.

        Returns
        -------
        object or None
            None if there is nothing to prepare.
        """
        return None

    def refreshed_gradient(
        self,
        risk: Risk,
        theta: Tensor,
        rng: torch.Generator,
        previous: Any = None,
        *,
        step: Step | None = None,
    ) -> tuple[Any, Tensor, Tensor]:
        """Refresh at θ, and draw there.

        A law overrides it if its refresh computes g₀ as well: that saves a gradient.

        Parameters
        ----------
        risk : Risk
        theta : Tensor of shape (\\*chains, D)
        rng : torch.Generator
        previous : object, default=None
            All as in :meth:`refresh`.
        step : Step, default=None
            Handed on to the methods that declare it.

        Returns
        -------
        state : object
            As from :meth:`refresh`.
        loss : Tensor of shape (\\*chains)
            As from :meth:`noisy_gradient`, as the next.
        gradient : Tensor of shape (\\*chains, D)
        """
        refresh, draw = self.refresh, self.noisy_gradient
        state = refresh(risk, theta, rng, previous, **step_for(refresh, step))
        return state, *draw(risk, theta, state, rng, **step_for(draw, step))

    def trace(self, risk: Risk, theta: Tensor, state: Any) -> Tensor:
        """Return E‖ε‖² = Tr C(θ).

        Parameters
        ----------
        risk : Risk
        theta : Tensor of shape (\\*chains, D)
        state : object
            From :meth:`refresh`.

        Returns
        -------
        Tensor of shape (\\*chains)
        """
        return self.covariance(risk, theta, state).trace()

    def trace_estimate(self, risk: Risk, theta: Tensor, state: Any) -> Estimate:
        """Return E‖ε‖² = Tr C(θ) with its standard error.

        Parameters
        ----------
        risk : Risk
        theta : Tensor of shape (\\*chains, D)
        state : object
            From :meth:`refresh`.

        Returns
        -------
        Estimate
            0 is the standard error of a law that overrides :meth:`trace` alone.
        """
        if type(self).trace is NoiseLaw.trace:
            operator = self.covariance(risk, theta, state)
            return Estimate(operator.trace(), operator.trace_stderr())
        value = self.trace(risk, theta, state)
        return Estimate(value, torch.zeros_like(value))

    def store_state(self, state: Any) -> Any:
        """Return a state as storable values: for a checkpoint, and to take back a draw.

        A loop draws before it writes a row of its history, and draws again if a
        callback then moves θ or η. For that it takes the first draw back. So a draw
        that changes the state must put a new number or tensor into it, and must not
        write into a tensor that is there.

        Parameters
        ----------
        state : object
            From :meth:`refresh`.

        Returns
        -------
        object
            Numbers, strings, None and tensors, in dicts, lists, tuples and sets.

        Raises
        ------
        TypeError
            If the state is made of something else: then a law has to override this
            method and :meth:`restore_state`.
        """
        try:
            return as_storable(state, "the state")
        except TypeError as error:
            raise TypeError(
                f"A checkpoint cannot hold the state of {type(self).__name__}: {error} "
                "Override store_state and restore_state, or leave checkpoint_dir at "
                "None."
            ) from error

    def restore_state(self, stored: Any, risk: Risk) -> Any:
        """Return the state of which :meth:`store_state` made storable values.

        Parameters
        ----------
        stored : object
            With its tensors on the risk's device.
        risk : Risk
            What the law saw when it made the state.

        Returns
        -------
        object
        """
        return stored

    def check(self, risk: Risk) -> None:
        """Raise if the settings cannot work on this risk; called before training.

        Parameters
        ----------
        risk : Risk

        Raises
        ------
        ValueError
            Says which setting, what is required and what was got.
        """
        check_risk(risk)
        settings = self.get_params(deep=False)
        examine = getattr(risk, "check_examples", None)
        if examine is not None and self.needs_example_gradients:
            match = settings.get("match", "none")
            size = "" if match == "none" else f" with match={match!r}"
            plain = copy.copy(self)
            plain.match = "none"
            way_out = "" if plain.needs_example_gradients else "match='none'"
            examine(f"The law {self.name}{size}", way_out)
        for name in ("batch_size", "n_components"):
            value = settings.get(name)
            if value is not None and not is_count(value):
                raise ValueError(
                    f"{name} of {self.name} must be an integer of at least 1, or None "
                    f"for the default. Got {value!r}."
                )
        check_count(f"refresh_every of {self.name}", self.refresh_every)
        for name in ("noise_scale", "sigma"):
            value = settings.get(name, 0)
            if value is None and name in self._optional:
                continue
            check_positive(f"{name} of {self.name}", value, or_zero=True)
            self._check_held(name, value, risk, squared=True)
        check_positive(f"tol of {self.name}", settings.get("tol", 1))
        k = settings.get("n_components")
        if k is not None and k > risk.n_params:
            raise ValueError(
                f"n_components of {self.name} must be at most the number of "
                f"parameters, {risk.n_params}. Got {k}."
            )

    def check_chains(self, risk: Risk) -> None:
        """Raise if θ of a risk cannot be many chains for this law.

        Parameters
        ----------
        risk : Risk

        Raises
        ------
        ValueError
            Says what to do.
        """
        return

    def _check_held(
        self, name: str, value: Any, risk: Risk, *, squared: bool = False
    ) -> None:
        title = f"{name} of {self.name}"
        check_held_by(title, float(value), risk.dtype, squared=squared)

    def _check_option(self, name: str, options: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in options:
            raise ValueError(
                f"{name} of {self.name} must be one of {options}. Got {value!r}."
            )

    def _batch_size(self, risk: Risk) -> int:
        """Return m; None stands for min(20, N)."""
        m: int | None = self.batch_size
        return min(DEFAULT_BATCH_SIZE, risk.n_examples) if m is None else int(m)

    def _n_components(self, risk: Risk) -> int:
        """Return k; None stands for min(20, D)."""
        k: int | None = self.n_components
        return min(DEFAULT_N_COMPONENTS, risk.n_params) if k is None else int(k)


class GaussianLaw(NoiseLaw):
    """A law whose state *is* its covariance.

    A subclass writes :meth:`refresh` alone, which returns one of the operators of
    :mod:`flatmin.linalg` that have a ``sample`` method.

    Examples
    --------
    >>> import torch
    >>> from flatmin.risk import QuadraticRisk
    >>> slopes = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, -2.0], [-1.0, 2.0]])
    >>> risk = QuadraticRisk(torch.diag(torch.tensor([4.0, 1.0])), slopes)
    >>> theta = torch.zeros(2)
    >>> from flatmin.linalg import DiagonalOperator
    >>> from flatmin.noise import GaussianLaw
    >>> class WeightNoise(GaussianLaw):
    ...     name = "weight_noise"
    ...     def refresh(self, risk, theta, rng, previous=None):
    ...         return DiagonalOperator(theta.square())
    >>> law, rng = WeightNoise(), torch.Generator().manual_seed(0)
    >>> state = law.refresh(risk, torch.tensor([1.0, 2.0]), rng)
    >>> law.covariance(risk, theta, state).trace()
    tensor(5.)
    """

    def noisy_gradient(
        self, risk: Risk, theta: Tensor, state: Any, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`NoiseLaw.noisy_gradient`."""
        if not hasattr(state, "sample"):
            raise TypeError(
                f"refresh of {type(self).__name__} must return an operator with a "
                f"sample method, such as DiagonalOperator. Got {state!r}; for other "
                "covariances subclass NoiseLaw."
            )
        loss, gradient = risk.value_and_gradient(theta)
        return loss, gradient + state.sample(rng)

    def covariance(self, risk: Risk, theta: Tensor, state: Any) -> LinearOperator:
        """See :meth:`NoiseLaw.covariance`; C is that of the last refresh."""
        operator: LinearOperator = state
        return operator

    def store_state(self, state: Any) -> Any:
        """See :meth:`NoiseLaw.store_state`."""
        try:
            return None if state is None else operator_to_storable(state)
        except TypeError:
            return super().store_state(state)

    def restore_state(self, stored: Any, risk: Risk) -> Any:
        """See :meth:`NoiseLaw.restore_state`."""
        return None if stored is None else operator_from_storable(stored)
