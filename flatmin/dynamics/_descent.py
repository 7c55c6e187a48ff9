"""The iteration θ ← θ - η (g₀ + ε)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from flatmin.dynamics._binding import FlatBinding
from flatmin.noise import NoiseLaw
from flatmin.risk import Risk

__all__ = ["DivergenceError", "NoisyDescent"]


class DivergenceError(ArithmeticError):
    """The loss is not finite any more."""


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
        At a loss that is not finite: raise, or return to the last θ with a finite
        loss (on a GPU, to the one at the start of the block) and stop.

    Attributes
    ----------
    iteration : int
        Steps taken.
    state : object
        The law's.
    diverged : str or None
        What happened, after a stop.
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
    ) -> None:
        self.risk = risk
        self.law = law
        self.binding = binding
        self.optimizer = optimizer
        self.rng = rng
        self.iteration = 0
        self.state: Any = None
        self.diverged: str | None = None
        self._refreshed_at = -1
        self._last_loss = math.nan
        # Reading a loss stops a GPU; there it is read once a block.
        self._reads_every_loss = risk.device.type == "cpu"
        self._keeps = on_divergence == "stop"
        self._kept: Tensor | None = None

    @property
    def theta(self) -> Tensor:
        """θ, shape (D,); moves in place."""
        return self.binding.theta

    def refresh(self) -> None:
        """Renew the law's state if it is due and has not been renewed here yet."""
        due = self.iteration % self.law.refresh_every == 0
        if due and self._refreshed_at != self.iteration:
            self.state = self.law.refresh(self.risk, self.theta, self.rng, self.state)
            self._refreshed_at = self.iteration

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
            With ``on_divergence="raise"``.
        """
        unread: list[Tensor] = []
        if not self._reads_every_loss:
            self._keep()
        for _ in range(n_iter):
            self.refresh()
            loss, gradient = self.law.noisy_gradient(
                self.risk, self.theta, self.state, self.rng
            )
            if self._reads_every_loss:
                if not self._accept(self.iteration, loss.item()):
                    return
                self._keep()
            else:
                unread.append(loss)
            self.binding.gradient.copy_(gradient)
            self.optimizer.step()
            self.iteration += 1
            if progress is not None:
                progress(1)
        first = self.iteration - len(unread)
        for i, value in enumerate(torch.stack(unread).tolist() if unread else []):
            if not self._accept(first + i, value):
                return

    def check(self, loss: float) -> bool:
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
            With ``on_divergence="raise"``.
        """
        return self._accept(self.iteration, loss)

    def _keep(self) -> None:
        if self._keeps:
            if self._kept is None:
                self._kept = torch.empty_like(self.theta)
            self._kept.copy_(self.theta)

    def _accept(self, iteration: int, loss: float) -> bool:
        if math.isfinite(loss):
            self._last_loss = loss
            return True
        lr = self.optimizer.param_groups[0]["lr"]
        message = (
            f"The loss became {loss} at iteration {iteration} with lr={lr:g}; the last "
            f"finite loss was {self._last_loss:.4g}. Try a smaller lr, a smaller "
            "noise_scale, or standardised X (and y)."
        )
        if not self._keeps:
            raise DivergenceError(message)
        self.diverged = message
        if self._kept is not None:
            self.binding.assign(self._kept)
        return False
