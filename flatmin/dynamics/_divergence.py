"""What becomes of a training whose loss stops being finite."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flatmin._utils.messages import message
from flatmin.dynamics._binding import FlatBinding
from flatmin.noise import UndefinedNoiseError
from flatmin.risk import Risk

__all__ = ["DivergenceError", "DivergenceGuard", "Place"]


class DivergenceError(ArithmeticError):
    """The loss is not finite any more.

    Examples
    --------
    >>> from flatmin import DivergenceError
    >>> issubclass(DivergenceError, ArithmeticError)
    True
    """


class Place(NamedTuple):
    """Where a training may return to."""

    iteration: int
    theta: Tensor  # (D,)
    n_clipped: Tensor  # () steps that were clipped until then


class DivergenceGuard:
    """Judges the losses of a training, and ends it at one that is not finite.

    Parameters
    ----------
    risk : Risk
    binding : FlatBinding
        Holds θ.
    optimizer : torch.optim.Optimizer
        Its learning rate is in messages.
    on_divergence : {"raise", "stop"}
        At a loss that is not finite: raise, or return to the last θ with a finite
        loss (on a GPU, to the one at the start of the block) and stop. Where the very
        first θ has none, there is nothing to return to: raise. Where the law's noise
        has no size any more (:class:`flatmin.noise.UndefinedNoiseError`): raise, or
        stop there.
    offset : int
        Iterations before these, for messages.

    Attributes
    ----------
    stops : bool
        Whether it stops, and does not raise.
    diverged : str or None
        What happened, after a stop.
    has_noise : bool
        False after a stop because the law's noise has no size.
    last_loss : float
        The last finite one; NaN before the first.
    step_start, block_start : Place or None
        Where to return to.
    moved_at : int
        The iteration at which callbacks have moved θ last; -1 before they do.
    """

    def __init__(
        self,
        risk: Risk,
        binding: FlatBinding,
        optimizer: torch.optim.Optimizer,
        *,
        on_divergence: Literal["raise", "stop"],
        offset: int,
    ) -> None:
        self.stops = on_divergence == "stop"
        self.diverged: str | None = None
        self.has_noise = True
        self.last_loss = math.nan
        self.step_start: Place | None = None
        self.block_start: Place | None = None
        self.moved_at = -1
        self._risk = risk
        self._binding = binding
        self._optimizer = optimizer
        self._offset = offset

    def accepts(self, iteration: int, value: float, what: str = "loss") -> bool:
        """Say whether a number of an iteration is finite.

        Parameters
        ----------
        iteration : int
        value : float
        what : str, default="loss"
            What it is.

        Returns
        -------
        bool
            False after a stop; then :meth:`go_back`.

        Raises
        ------
        DivergenceError
            If it does not stop.
        """
        if math.isfinite(value):
            self.last_loss = value
            return True
        at = f"{value} at iteration {self._offset + iteration}"
        if math.isnan(self.last_loss):
            raise DivergenceError(
                f"The {what} is {at}, before the first step. Standardise X (and y), "
                "and look at params_init or what the module is initialised with."
            )
        if iteration == self.moved_at:
            text = (
                f"The {what} became {at}, where a callback has set θ; the last finite "
                f"loss was {self.last_loss:.4g}. Look at the callbacks."
            )
        else:
            lr = self._optimizer.param_groups[0]["lr"]
            text = (
                f"The {what} became {at} with lr={lr:g}; the last finite loss was "
                f"{self.last_loss:.4g}. Try a smaller lr, a smaller noise_scale, or "
                "standardised X (and y)."
            )
        if not self.stops:
            raise DivergenceError(text)
        self.diverged = text
        return False

    def go_back(self) -> Place | None:
        """Set θ to one where L(θ) is finite, which a minibatch's loss does not show.

        Returns
        -------
        Place or None
            Where it is now; None if it has not moved.
        """
        place = None
        for start in (self.step_start, self.block_start):
            if start is not None:
                place = start
                self._binding.assign(place.theta)
                if math.isfinite(float(self._risk.value(self._binding.theta))):
                    break
        return place

    def end_noise(self, error: UndefinedNoiseError, iteration: int) -> None:
        """Stop at this θ, where the law has no noise to go on with, or raise.

        Parameters
        ----------
        error : UndefinedNoiseError
            Raised, if the training does not stop.
        iteration : int
        """
        if not self.stops:
            raise error
        self.has_noise = False
        at = self._offset + iteration
        self.diverged = f"No noise at iteration {at}: {message(error)}"
