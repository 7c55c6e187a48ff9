"""What the law draws for each iteration: a batch, a state, and a noisy gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flatmin._runs.storable import move_storable
from flatmin.dynamics._batches import GradientBatches
from flatmin.dynamics._descent_state import Ahead
from flatmin.dynamics._steps import step_to_tell
from flatmin.noise import NoiseLaw, Step, step_for
from flatmin.risk import Risk

__all__ = ["LawDraws"]


class LawDraws:
    """The draws of a law along a descent, of which one may come ahead of its step.

    Parameters
    ----------
    risk : Risk
    law : NoiseLaw
    optimizer : torch.optim.Optimizer
        Whose η the law may be told.
    rng : torch.Generator
        On the risk's device.
    batches : GradientBatches or None
        Of the risk: each iteration sees one of them; None sees all examples.

    Attributes
    ----------
    batch : Risk
        What the law saw last: the iteration's batch, or the risk.
    state : object
        The law's.
    stale : bool
        The law's state is of a θ that was here before.
    """

    def __init__(
        self,
        risk: Risk,
        law: NoiseLaw,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
        *,
        batches: GradientBatches | None,
    ) -> None:
        self.risk = risk
        self.batch: Risk = risk
        self.law = law
        self.optimizer = optimizer
        self.rng = rng
        self.batches = batches
        self.state: Any = None
        self.stale = False
        self._asks = law.takes_step
        self._drawn_at = -1
        self._refreshed_at = -1
        self._refreshed_on: Tensor | None = None  # the batch's examples
        self._ahead: Ahead | None = None
        # What was there before it, should the step turn out to be another one.
        self._before: dict[str, Any] | None = None

    def is_due(self, iteration: int) -> bool:
        """Return whether the law's state is to be renewed."""
        due = iteration % int(self.law.refresh_every) == 0
        return self.stale or (due and self._refreshed_at != iteration)

    def is_current(self, iteration: int) -> bool:
        """Return whether the law's state is that of the iteration."""
        return self._refreshed_at <= iteration and not self.is_due(iteration)

    def draw_batch(self, iteration: int) -> None:
        """Draw the iteration's batch, unless that has been done."""
        if self.batches is not None and self._drawn_at != iteration:
            self.batch = self.batches.draw()
            self._drawn_at = iteration

    def look_ahead(self, theta: Tensor, iteration: int) -> None:
        """Renew the law's state, and keep the noisy gradient for the step.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        iteration : int
        """
        before = self.rng.get_state()
        try:
            kept = self._keep_state(iteration)
            loss, gradient = self._refreshed_gradient(theta, iteration)
            drawn = self.rng.get_state()
            self._ahead = Ahead(theta.clone(), loss, gradient, drawn)
            self._before = kept
        finally:
            # A run that is interrupted before the step draws the same in its next fit.
            self.rng.set_state(before)

    def look_where_it_ends(self, theta: Tensor, iteration: int) -> None:
        """Renew the law's state where no step follows; no generator moves on.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        iteration : int
        """
        batches = self.batches
        before = None if batches is None else batches.rng.get_state()
        try:
            self.draw_batch(iteration)
            self.look_ahead(theta, iteration)
        finally:
            if batches is not None and before is not None:
                batches.rng.set_state(before)

    def noisy_gradient(self, theta: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """Return the loss and g₀ + ε of a step.

        Parameters
        ----------
        theta : Tensor of shape (D,)
        iteration : int

        Returns
        -------
        loss : Tensor of shape ()
        gradient : Tensor of shape (D,)
        """
        self.draw_batch(iteration)
        if self._ahead is not None:
            ahead = self._ahead
            same = torch.equal(ahead.theta, theta)
            if same and not self._has_another_rate(iteration):
                self._ahead = self._before = None
                self.rng.set_state(ahead.rng_state.cpu())
                return ahead.loss, ahead.gradient
            self.take_back()
        if self.is_due(iteration):
            return self._refreshed_gradient(theta, iteration)
        draw = self.law.noisy_gradient
        told = step_for(draw, self._step(iteration))
        return draw(self.batch, theta, self.state, self.rng, **told)

    def take_back(self) -> None:
        """Forget the refresh that came before the step, if one did."""
        if self._ahead is None:
            return
        before, self._ahead, self._before = self._before, None, None
        self.stale = True
        if before is not None and "law" in before:
            self._refreshed_on = before["refreshed_on"]
            seen = self._risk_of(self._refreshed_on)
            self.state = self.law.restore_state(before["law"], seen)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next draws depend on; shares the tensors.

        Returns
        -------
        dict

        Raises
        ------
        TypeError
            If the law's state cannot be stored.
        """
        batches = self.batches
        return {
            "law": self.law.store_state(self.state),
            "refreshed_at": self._refreshed_at,
            "refreshed_on": self._refreshed_on,
            "ahead": None if self._ahead is None else tuple(self._ahead),
            "before": self._before,
            "stale": self.stale,
            "rng": self.rng.get_state(),
            "batches_rng": None if batches is None else batches.rng.get_state(),
            "batch": None if batches is None else batches.indices,
            "drawn_at": self._drawn_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called.

        Parameters
        ----------
        state : mapping
            May hold more.
        """
        self.rng.set_state(state["rng"])
        state = move_storable(dict(state), self.risk.device)
        if self.batches is not None:
            self.batches.rng.set_state(state["batches_rng"].cpu())
            self.batches.indices = state["batch"]
        self.batch = self._risk_of(state["batch"])
        self._drawn_at = state["drawn_at"]
        self._refreshed_at = state["refreshed_at"]
        self._refreshed_on = state["refreshed_on"]
        ahead = state["ahead"]
        self._ahead = None if ahead is None else Ahead(*ahead)
        self._before = state.get("before")  # which earlier versions did not have
        self.stale = state["stale"]
        seen = self._risk_of(self._refreshed_on)
        self.state = self.law.restore_state(state["law"], seen)

    def _risk_of(self, indices: Tensor | None) -> Risk:
        if self.batches is None or indices is None:
            return self.risk
        return self.batches.risk.subset(indices)

    def _keep_state(self, iteration: int) -> dict[str, Any]:
        """Return what :meth:`take_back` needs; a draw may advance a state in place."""
        step = self._step(iteration)
        kept = {
            "lr": None if step is None else step.lr,
            "refreshed_on": self._refreshed_on,
        }
        # Somebody's law may have no storable state; then its draws are not taken back.
        with contextlib.suppress(TypeError):
            kept["law"] = self.law.store_state(self.state)
        return kept

    def _has_another_rate(self, iteration: int) -> bool:
        """Say whether η was another one when the law was asked ahead of the step."""
        step, before = self._step(iteration), self._before
        if step is None or before is None:
            return False
        return bool(before["lr"] != step.lr)

    def _refreshed_gradient(
        self, theta: Tensor, iteration: int
    ) -> tuple[Tensor, Tensor]:
        refreshed = self.law.refreshed_gradient
        told = step_for(refreshed, self._step(iteration))
        self.state, loss, gradient = refreshed(
            self.batch, theta, self.rng, self.state, **told
        )
        self._refreshed_at, self.stale = iteration, False
        self._refreshed_on = None if self.batches is None else self.batches.indices
        return loss, gradient

    def _step(self, iteration: int) -> Step | None:
        """Return what the law is told; nothing is read for a law that does not ask."""
        if not self._asks:
            return None
        return step_to_tell(self.law, self.optimizer, iteration)
