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
from flatmin.dynamics._descent_state import Ahead, check_descent_state, check_groups
from flatmin.dynamics._divergence import DivergenceGuard, Place
from flatmin.dynamics._kept_params import KeptParams
from flatmin.dynamics._plain_steps import check_plain_steps
from flatmin.dynamics._substeps import move, step_to_tell
from flatmin.noise import NoiseLaw, Step, UndefinedNoiseError, step_for
from flatmin.risk import Risk

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

    Attributes
    ----------
    batch : Risk
        What the law saw last: the iteration's batch, or the risk.
    iteration : int
        Steps that led to θ.
    state : object
        The law's.
    kept : KeptParams or None
        As given.
    """

    def __init__(
        self,
        risk: Risk,
        law: NoiseLaw,
        binding: FlatBinding,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
        *,
        on_divergence: Literal["raise", "stop"] = "raise",
        offset: int = 0,
        batches: GradientBatches | None = None,
        kept: KeptParams | None = None,
    ) -> None:
        self.risk = risk
        self.batch: Risk = risk
        self.law = law
        self.binding = binding
        self.optimizer = optimizer
        self.rng = rng
        self.iteration = 0
        self.state: Any = None
        self.kept = kept
        self._batches = batches
        self._asks = law.takes_step
        momenta = [group.get("momentum", 0) for group in optimizer.param_groups]
        settings = {**optimizer.defaults, "momentum": max(momenta)}
        check_plain_steps(law, type(optimizer), settings, batches is not None)
        self._drawn_at = -1
        self._refreshed_at = -1
        self._refreshed_on: Tensor | None = None  # the batch's examples
        self._ahead: Ahead | None = None
        # What was there before it, should the step turn out to be another one.
        self._before: dict[str, Any] | None = None
        self._left: Tensor | None = None  # θ after the last step
        self._stale = False  # the law's state is of a θ that was here before
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
    def diverged(self) -> str | None:
        """What happened, after a stop."""
        return self._guard.diverged

    @property
    def has_noise(self) -> bool:
        """Whether the law's noise has a size at θ; False after a stop without."""
        return self._guard.has_noise

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
        self._draw()
        if self._is_due:
            before = self.rng.get_state()
            kept = self._keep_state()
            try:
                with self._judging_errors():
                    loss, gradient = self._refreshed_gradient()
                    drawn = self.rng.get_state()
                    self._ahead = Ahead(self.theta.clone(), loss, gradient, drawn)
                    self._before = kept
            finally:
                # A run that is interrupted before the step draws the same in its next
                # fit.
                self.rng.set_state(before)
        return self.diverged is None

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
            self._guard.step_start = Place(self.iteration, self._left)
        self._left = self.theta.clone()
        self._take_back()
        self._stale = True
        self._guard.moved_at = self.iteration

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
        self._guard.block_start = self._guard.here(self.iteration)
        for _ in range(n_iter):
            for substep in range(int(self.law.n_substeps)):
                with self._judging_errors():
                    loss, gradient = self._noisy_gradient()
                if self.diverged is not None:
                    return
                if self._reads_every_loss:
                    if not self._accept(self.iteration, loss.item()):
                        return
                    if substep == 0:
                        self._guard.step_start = self._guard.here(self.iteration)
                else:
                    unread.append(loss)
                self.binding.gradient.copy_(gradient)
                move(self.optimizer, int(self.law.n_substeps))
            self.iteration += 1
            if self.kept is not None:
                self.kept.look(self.iteration, self.theta)
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
        batches, start = self._batches, self._guard.step_start
        return {
            "theta": self.theta,
            "iteration": self.iteration,
            "optimizer": self.optimizer.state_dict(),
            "law": self.law.store_state(self.state),
            "refreshed_at": self._refreshed_at,
            "refreshed_on": self._refreshed_on,
            "ahead": None if self._ahead is None else tuple(self._ahead),
            "before": self._before,
            "stale": self._stale,
            "rng": self.rng.get_state(),
            "batches_rng": None if batches is None else batches.rng.get_state(),
            "batch": None if batches is None else batches.indices,
            "drawn_at": self._drawn_at,
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
        check_descent_state(state, self.theta, self._batches)
        groups = state["optimizer"]["param_groups"]
        check_groups(groups, self.optimizer.param_groups, may_change=has_callbacks)
        self.iteration = state["iteration"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.binding.assign(state["theta"])
        self._left = self.theta.clone()
        self.rng.set_state(state["rng"])
        state = move_storable(state, self.risk.device)
        if self._batches is not None:
            self._batches.rng.set_state(state["batches_rng"].cpu())
            self._batches.indices = state["batch"]
        self.batch = self._risk_of(state["batch"])
        self._drawn_at = state["drawn_at"]
        self._refreshed_at = state["refreshed_at"]
        self._refreshed_on = state["refreshed_on"]
        ahead = state["ahead"]
        self._ahead = None if ahead is None else Ahead(*ahead)
        self._before = state.get("before")  # which earlier versions did not have
        self._stale = state["stale"]
        seen = self._risk_of(self._refreshed_on)
        self.state = self.law.restore_state(state["law"], seen)
        self._guard.last_loss = state["last_loss"]
        start = state["step_start"]
        self._guard.step_start = None if start is None else Place(*start)

    def _risk_of(self, indices: Tensor | None) -> Risk:
        if self._batches is None or indices is None:
            return self.risk
        return self._batches.risk.subset(indices)

    @property
    def _is_due(self) -> bool:
        due = self.iteration % int(self.law.refresh_every) == 0
        return self._stale or (due and self._refreshed_at != self.iteration)

    def _draw(self) -> None:
        """Draw the iteration's batch, unless that has been done."""
        if self._batches is not None and self._drawn_at != self.iteration:
            self.batch = self._batches.draw()
            self._drawn_at = self.iteration

    def _noisy_gradient(self) -> tuple[Tensor, Tensor]:
        self._draw()
        if self._ahead is not None:
            ahead = self._ahead
            if torch.equal(ahead.theta, self.theta) and not self._has_another_rate():
                self._ahead = self._before = None
                self.rng.set_state(ahead.rng_state.cpu())
                return ahead.loss, ahead.gradient
            self._take_back()
        if self._is_due:
            return self._refreshed_gradient()
        draw = self.law.noisy_gradient
        told = step_for(draw, self._step)
        return draw(self.batch, self.theta, self.state, self.rng, **told)

    def _keep_state(self) -> dict[str, Any]:
        """Return what :meth:`_take_back` needs; a draw may advance a state in place."""
        step = self._step
        kept = {
            "lr": None if step is None else step.lr,
            "refreshed_on": self._refreshed_on,
        }
        # Somebody's law may have no storable state; then its draws are not taken back.
        with contextlib.suppress(TypeError):
            kept["law"] = self.law.store_state(self.state)
        return kept

    def _has_another_rate(self) -> bool:
        """Say whether η was another one when the law was asked ahead of the step."""
        step, before = self._step, self._before
        if step is None or before is None:
            return False
        return bool(before["lr"] != step.lr)

    def _take_back(self) -> None:
        """Forget the refresh that came before the step, if one did."""
        if self._ahead is None:
            return
        before, self._ahead, self._before = self._before, None, None
        self._stale = True
        if before is not None and "law" in before:
            self._refreshed_on = before["refreshed_on"]
            seen = self._risk_of(self._refreshed_on)
            self.state = self.law.restore_state(before["law"], seen)

    def _refreshed_gradient(self) -> tuple[Tensor, Tensor]:
        refreshed = self.law.refreshed_gradient
        told = step_for(refreshed, self._step)
        self.state, loss, gradient = refreshed(
            self.batch, self.theta, self.rng, self.state, **told
        )
        self._refreshed_at, self._stale = self.iteration, False
        self._refreshed_on = None if self._batches is None else self._batches.indices
        return loss, gradient

    @property
    def _step(self) -> Step | None:
        """What the law is told; nothing is read for a law that does not ask."""
        if not self._asks:
            return None
        return step_to_tell(self.law, self.optimizer, self.iteration)

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
            squares = self.batch.squared_norms(self.theta).sum()
            if math.isfinite(squares.to(self.risk.dtype)):
                raise
            self._accept(self.iteration, math.inf, "squared gradient")

    def _accept(self, iteration: int, value: float, what: str = "loss") -> bool:
        if self._guard.accepts(iteration, value, what):
            return True
        self.iteration = self._guard.go_back(self.iteration)
        if self.kept is not None:
            self.kept.drop_after(self.iteration)
        return False
