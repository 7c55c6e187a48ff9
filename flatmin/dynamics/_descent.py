"""The iteration θ ← θ - η (g₀ + ε)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin._runs.storable import move_storable
from flatmin.dynamics._batches import GradientBatches
from flatmin.dynamics._binding import FlatBinding, check_outputs
from flatmin.dynamics._descent_state import check_descent_state, check_groups
from flatmin.dynamics._divergence import DivergenceGuard, Place
from flatmin.dynamics._draws import LawDraws
from flatmin.dynamics._kept_params import KeptParams
from flatmin.dynamics._plain_steps import check_plain_steps
from flatmin.dynamics._schedule import Schedule
from flatmin.dynamics._steps import Stepper
from flatmin.noise import NoiseLaw, UndefinedNoiseError
from flatmin.risk import EmpiricalRisk, Risk

__all__ = ["NoisyDescent"]


class NoisyDescent:
    """Steps of an optimizer on noisy gradients of a risk.

    Parameters
    ----------
    risk : Risk
    law : NoiseLaw
    binding : FlatBinding
        Holds θ; the optimizer moves it through the views.
    optimizer : torch.optim.Optimizer
        On the bound module's parameters.
    rng : torch.Generator
        On the risk's device.
    on_divergence : {"raise", "stop"}, default="raise"
    offset : int, default=0
        Both as in :class:`DivergenceGuard`.
    batches : GradientBatches, default=None
        Of the risk: each iteration sees one of them; None sees all examples.
    kept : KeptParams, default=None
        Is shown every θ that a step leads to.
    clip_norm : float, default=None
    schedule : Schedule, default=None
        Both as in :class:`Stepper`.

    Attributes
    ----------
    iteration : int
        Steps that led to θ.
    kept : KeptParams or None
        As given.
    """

    def __init__(
        self,
        risk: Risk,
        law: NoiseLaw,
        binding: FlatBinding,
        optimizer: torch.optim.Optimizer,
        *,
        rng: torch.Generator,
        on_divergence: Literal["raise", "stop"] = "raise",
        offset: int = 0,
        batches: GradientBatches | None = None,
        kept: KeptParams | None = None,
        clip_norm: float | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.risk = risk
        self.law = law
        self.binding = binding
        self.optimizer = optimizer
        self.iteration = 0
        self.kept = kept
        self._draws = LawDraws(risk, law, optimizer, rng, batches=batches)
        momenta = [group.get("momentum", 0) for group in optimizer.param_groups]
        settings = {**optimizer.defaults, "momentum": max(momenta)}
        check_plain_steps(
            law, type(optimizer), settings, batches is not None, clip_norm=clip_norm
        )
        self._stepper = Stepper(
            optimizer,
            binding,
            int(law.n_substeps),
            clip_norm=clip_norm,
            schedule=schedule,
        )
        self._left: Tensor | None = None  # θ after the last step
        self._statistics_of: Tensor | None = None  # θ of those in the module
        # Reading a loss stops a GPU; there it is read once a block.
        self._reads_every_loss = risk.device.type == "cpu"
        self._guard = DivergenceGuard(
            risk, binding, optimizer, on_divergence=on_divergence, offset=offset
        )

    @property
    def theta(self) -> Tensor:
        """θ, shape (D,); moves in place."""
        return self.binding.theta

    @property
    def rng(self) -> torch.Generator:
        """Of what the law draws."""
        return self._draws.rng

    @property
    def batch(self) -> Risk:
        """What the law saw last: the iteration's batch, or the risk."""
        return self._draws.batch

    @property
    def state(self) -> Any:
        """The law's."""
        return self._draws.state

    @property
    def diverged(self) -> str | None:
        """What happened, after a stop."""
        return self._guard.diverged

    @property
    def has_noise(self) -> bool:
        """Whether the law's noise has a size at θ, and its state is that of θ."""
        return self._guard.has_noise and self._draws.is_current(self.iteration)

    @property
    def n_clipped(self) -> Tensor:
        """Steps so far that were clipped, shape ()."""
        return self._stepper.n_clipped

    @property
    def has_schedule(self) -> bool:
        """Whether η changes with the iteration by a schedule."""
        return self._stepper.has_schedule

    def refresh(self) -> bool:
        """Draw the iteration's batch, and renew the law's state on it if that is due.

        Neither happens twice at one iteration. A refresh also computes the step's loss
        and noisy gradient, as inside :meth:`run`, and keeps them for the step: so what
        is measured between two steps does not change θ.

        Returns
        -------
        bool
            False after a stop.

        Raises
        ------
        DivergenceError, UndefinedNoiseError
            If it does not stop there.
        RuntimeError
            The law's own, at a θ with a finite loss.
        """
        self._draws.draw_batch(self.iteration)
        if self._draws.is_due(self.iteration):
            with self._judging_errors():
                self._draws.look_ahead(self.theta, self.iteration)
        return self.diverged is None

    def refresh_for_row(self) -> None:
        """Renew the law's state, if that is due, where no step follows.

        Nothing that a later fit draws from moves on. A law that fails, or whose noise
        has no size here, ends nothing: :attr:`has_noise` tells.
        """
        if self._draws.is_due(self.iteration):
            with contextlib.suppress(RuntimeError, ArithmeticError):
                self._draws.look_where_it_ends(self.theta, self.iteration)

    def follow(self) -> None:
        """Go on from what others, such as callbacks, have written into the module.

        Where they have moved θ, the next refresh comes at once. One that came before
        the step is taken back: the law draws from where it was.

        Raises
        ------
        RuntimeError
            If they have changed something that θ does not hold.
        """
        self.binding.follow()
        self.binding.check_rest()
        if self.binding.has_other_settings():
            check_outputs(self.risk, self.binding.module, self.theta)
        if self._left is None or torch.equal(self._left, self.theta):
            return
        if self._guard.stops:
            self._guard.step_start = Place(self.iteration, self._left, self.n_clipped)
        self._left = self.theta.clone()
        self._draws.take_back()
        self._draws.stale = True
        self._guard.moved_at = self.iteration

    def write_statistics(self) -> None:
        """Give the module's BatchNorm layers the statistics of all examples at θ.

        Only under ``batch_norm="batch"``, by a pass over the data, and once a θ. In
        evaluation mode the module then computes what is trained.
        """
        risk, before = self.risk, self._statistics_of
        if not isinstance(risk, EmpiricalRisk) or risk.batch_norm != "batch":
            return
        if before is None or not torch.equal(before, self.theta):
            self.binding.write_statistics(risk.batch_statistics(self.theta))
            self._statistics_of = self.theta.clone()

    def run(self, n_iter: int, progress: Callable[[int], Any] | None = None) -> None:
        """Take steps.

        Parameters
        ----------
        n_iter : int
            How many; fewer are taken if the loss stops being finite.
        progress : callable, default=None
            Called with 1 after each step.

        Raises
        ------
        DivergenceError
            If it does not stop there.
        """
        unread: list[Tensor] = []
        self._guard.block_start = self._here()
        for _ in range(n_iter):
            for substep in range(int(self.law.n_substeps)):
                with self._judging_errors():
                    loss, gradient = self._draws.noisy_gradient(
                        self.theta, self.iteration
                    )
                if self.diverged is not None:
                    return
                if self._reads_every_loss:
                    if not self._accept(self.iteration, loss.item()):
                        return
                    if substep == 0:
                        self._guard.step_start = self._here()
                else:
                    unread.append(loss)
                self._stepper.step(gradient)
            self.iteration += 1
            self._stepper.begin(self.iteration)
            if self.kept is not None:
                self.kept.keep_if_due(self.iteration, self.theta)
            if progress is not None:
                progress(1)
        self._left = self.theta.clone()
        per_iteration = int(self.law.n_substeps)
        first = self.iteration - len(unread) // per_iteration
        for i, value in enumerate(torch.stack(unread).tolist() if unread else []):
            if not self._accept(first + i // per_iteration, value):
                return

    def accepts(self, loss: float) -> bool:
        """Say whether a loss measured at the present θ is finite; see ``run``.

        Parameters
        ----------
        loss : float
            L(θ) after the last step.

        Returns
        -------
        bool
            False after a stop.

        Raises
        ------
        DivergenceError
            If it does not stop there.
        """
        return self._accept(self.iteration, loss)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next steps depend on, besides the constructor's.

        Returns
        -------
        dict
            Storable values, as far as the optimizer's are; shares the tensors.

        Raises
        ------
        TypeError
            If the law's state cannot be stored.
        """
        start = self._guard.step_start
        return {
            "theta": self.theta,
            "iteration": self.iteration,
            "optimizer": self.optimizer.state_dict(),
            **self._draws.state_dict(),
            "n_clipped": self.n_clipped,
            "last_loss": self._guard.last_loss,
            "step_start": None if start is None else tuple(start),
        }

    def load_state_dict(
        self, state: dict[str, Any], *, has_callbacks: bool = False
    ) -> None:
        """Go back to where :meth:`state_dict` was called.

        Parameters
        ----------
        state : dict
            Of a descent that was made with the same arguments.
        has_callbacks : bool, default=False
            Whether there is what may have changed the optimizer's numbers.

        Raises
        ------
        ValueError
            If it is the state of another descent.
        """
        check_descent_state(state, self.theta, self._draws.batches)
        groups = state["optimizer"]["param_groups"]
        may_change = has_callbacks or self._stepper.has_schedule
        check_groups(groups, self.optimizer.param_groups, may_change=may_change)
        self.iteration = state["iteration"]
        self.optimizer.load_state_dict(state["optimizer"])
        self._stepper.begin(self.iteration)
        self.binding.assign(state["theta"])
        self._left = self.theta.clone()
        self._draws.load_state_dict(state)
        state = move_storable(state, self.risk.device)
        self._stepper.n_clipped = state["n_clipped"]
        self._guard.last_loss = state["last_loss"]
        start = state["step_start"]
        self._guard.step_start = None if start is None else Place(*start)

    def _here(self) -> Place | None:
        """Return where a divergence may return to, if it may."""
        if not self._guard.stops:
            return None
        return Place(self.iteration, self.theta.clone(), self.n_clipped)

    @contextlib.contextmanager
    def _judging_errors(self) -> Iterator[None]:
        """Take a law's error for a divergence where the loss, or its square, is one."""
        try:
            yield
        except (RuntimeError, ArithmeticError) as error:  # an eigensolver gives up
            loss = float(self.batch.value(self.theta))
            if not math.isfinite(loss):
                self._accept(self.iteration, loss)
                return
            if isinstance(error, UndefinedNoiseError):
                if self.state is None:
                    raise
                self._guard.end_noise(error, self.iteration)
                return
            batch = self.batch
            if isinstance(batch, EmpiricalRisk) and batch.batch_norm == "batch":
                raise  # there are no gᵢ
            squares = self.batch.squared_norms(self.theta).sum()
            if math.isfinite(squares.to(self.risk.dtype)):
                raise
            self._accept(self.iteration, math.inf, "squared gradient")

    def _accept(self, iteration: int, value: float, what: str = "loss") -> bool:
        if self._guard.accepts(iteration, value, what):
            return True
        back = self._guard.go_back()
        if back is not None:
            self.iteration, _, self._stepper.n_clipped = back
        if self.kept is not None:
            self.kept.drop_after(self.iteration)
        return False
