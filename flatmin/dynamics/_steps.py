"""Steps of an optimizer: clipped, scheduled, or l steps at η/l an iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.dynamics._binding import FlatBinding
from flatmin.dynamics._schedule import Schedule
from flatmin.noise import NoiseLaw, Step

__all__ = ["Stepper", "step_to_tell"]

_OF_PYTORCH = 1e-6  # added to the norm in clip_grad_norm_


def step_to_tell(
    law: NoiseLaw, optimizer: torch.optim.Optimizer, iteration: int
) -> Step:
    """Return what a law is told of the step that it draws for.

    Parameters
    ----------
    law : NoiseLaw
    optimizer : torch.optim.Optimizer
    iteration : int

    Returns
    -------
    Step
        With η/l.

    Raises
    ------
    ValueError
        If the optimizer has several η.
    """
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) > 1:
        raise ValueError(
            f"{type(law).__name__} needs one learning rate for all parameters. Got "
            f"{sorted(rates)}; give param_groups one lr, or use a law that does not "
            "take a step."
        )
    return Step(iteration, rates.pop() / int(law.n_substeps))


class Stepper:
    """Takes an optimizer's steps, clipped and at scheduled rates where that is wanted.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    binding : FlatBinding
        Holds the gradient that the optimizer sees.
    n_substeps : int
        l: so many steps at η/l are an iteration.
    clip_norm : float, default=None
        c: a gradient g is scaled by min(1, c/(‖g‖ + 1e-6)), as
        ``torch.nn.utils.clip_grad_norm_`` does. None clips nothing.
    schedule : Schedule, default=None

    Attributes
    ----------
    n_clipped : Tensor of shape (), int64
        Steps so far whose gradient was scaled by less than 1; on the binding's device.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        binding: FlatBinding,
        n_substeps: int,
        *,
        clip_norm: float | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.n_clipped = torch.zeros((), dtype=torch.int64, device=binding.theta.device)
        self._optimizer = optimizer
        self._binding = binding
        self._n_substeps = n_substeps
        self._clip_norm = clip_norm
        self._schedule = schedule
        self.begin(0)

    @property
    def has_schedule(self) -> bool:
        """Whether the numbers of the optimizer's groups change with the iteration."""
        return self._schedule is not None

    def begin(self, iteration: int) -> None:
        """Set what the schedule says for an iteration's steps.

        Parameters
        ----------
        iteration : int
        """
        if self._schedule is not None:
            self._schedule.apply(self._optimizer, iteration)

    def step(self, gradient: Tensor) -> None:
        """Step on a gradient.

        Parameters
        ----------
        gradient : Tensor of shape (D,)
        """
        self._binding.gradient.copy_(gradient)
        if self._clip_norm is not None:
            self._clip(self._binding.gradient)
        if self._n_substeps == 1:
            self._optimizer.step()
            return
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate / self._n_substeps
        try:
            self._optimizer.step()
        finally:  # also after an error
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def _clip(self, gradient: Tensor) -> None:
        # Nothing is read from the device. In float64 squares do not overflow.
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        scale = self._clip_norm / (norm + _OF_PYTORCH)
        self.n_clipped = self.n_clipped + (scale < 1)
        gradient.mul_(scale.clamp(max=1).to(gradient.dtype))
