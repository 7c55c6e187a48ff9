"""Gradient descent from where the noise ended: some steps, or to a training loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from flatmin._runs.checkpoint_files import CheckpointFolder
from flatmin.comparison._checkpoints import UnitFolder
from flatmin.comparison._fits import (
    Data,
    fit,
    guarded,
    history,
    measure_at,
    plain_descent,
)
from flatmin.comparison._plan import Plan

__all__ = ["Descent", "LossQuench", "descend_to_loss", "quench", "quench_to_loss"]

# Iterations between two looks at the losses, which a GPU has to be waited for. Once the
# loss is reached, θ stands still for the rest of them.
_BLOCK = 16


@dataclass(frozen=True)
class Descent:
    """Where gradient descent came to."""

    theta: Tensor  # (D,)
    n_iter: int  # steps that led there
    loss: float  # L(θ), at most the wanted one if that was reached
    reached: bool


@dataclass(frozen=True)
class LossQuench:
    """What came of the quench to a loss."""

    outcome: Literal["reached", "not reached", "below before", "failed"]
    theta: np.ndarray  # (D,)
    failure: tuple[str, str] | None  # error and message


def descend_to_loss(
    risk: Any,
    theta: Tensor,
    lr: float,
    loss: float,
    max_iter: int,
    *,
    begin: int = 0,
    on_block: Callable[[Tensor, int], Any] | None = None,
) -> Descent:
    """Take steps θ ← θ - η ∇L(θ) to the first iterate with L(θ) ≤ loss.

    Parameters
    ----------
    risk : Risk
    theta : Tensor of shape (D,)
        The iterate of number ``begin``; it may be the first.
    lr : float
        η.
    loss : float
        The one to reach.
    max_iter : int
        The number of the last iterate.
    begin : int, default=0
        Steps that led to ``theta``.
    on_block : callable, default=None
        Called with θ and its number between blocks of iterations.

    Returns
    -------
    Descent
        Its ``loss`` is not finite, and its θ of no use, if the descent diverged.
    """
    at = begin
    while True:
        losses = []
        stands = torch.zeros((), dtype=torch.bool, device=theta.device)
        for i in range(at, min(at + _BLOCK, max_iter + 1)):
            value, gradient = risk.value_and_gradient(theta)
            # In double precision: that of θ may round the wanted loss up.
            stands = stands | (value.isfinite() & (value.double() <= loss))
            losses.append(value)
            if i < max_iter:
                # As the step of torch.optim.SGD, bit for bit.
                theta = theta.add(torch.where(stands, 0.0, gradient), alpha=-lr)
        for i, value in enumerate(torch.stack(losses).tolist(), at):
            if value <= loss or not math.isfinite(value):
                return Descent(theta, i, value, math.isfinite(value))
        at += len(losses)
        if at > max_iter:
            return Descent(theta, max_iter, value, False)
        if on_block is not None:
            on_block(theta, at)


def quench(
    noisy: Any, data: Data, plan: Plan, folder: UnitFolder, rows: list[dict[Any, Any]]
) -> Any:
    """Go on for some steps without noise, and append what was recorded.

    Parameters
    ----------
    noisy : estimator
        Fitted.
    data : tuple
    plan : Plan
    folder : UnitFolder
    rows : list of dict
        Of the table; grows.

    Returns
    -------
    estimator
        Fitted, or diverged.
    """
    settings = {
        **plain_descent(noisy.params_, plan.quench),
        "lr": _rate(noisy, plan),
        "metrics": guarded(noisy.metrics),  # themselves, not what clone makes of them
        **folder.fits("quench"),
    }
    quenched = fit(noisy, noisy.random_state, data, settings)
    found = history(quenched)
    for row in found:
        row["phase"] = "quench"
        row["iteration"] += noisy.n_iter_
    rows += found
    if not quenched.diverged_:
        found[-1] |= measure_at(quenched.risk_, plan.end_metrics, "end_metrics")
    return quenched


def quench_to_loss(
    noisy: Any, data: Data, plan: Plan, folder: UnitFolder, rows: list[dict[Any, Any]]
) -> LossQuench:
    """Go on to a training loss without noise, and append a row of where that ended.

    Parameters
    ----------
    noisy : estimator
        Fitted; not moved.
    data : tuple
    plan : Plan
        With ``quench_loss`` and ``quench_loss_iter``.
    folder : UnitFolder
    rows : list of dict
        Of the table; grows.

    Returns
    -------
    LossQuench
    """
    target, bound = cast(float, plan.quench_loss), cast(int, plan.quench_loss_iter)
    lr = _rate(noisy, plan)
    saved = _Saved(folder, folder.every or noisy.record_every)
    risk = noisy.risk_
    theta, begin = saved.read(risk.params())
    found = descend_to_loss(
        risk, theta, lr, target, bound, begin=begin, on_block=saved.write
    )
    end = found.theta.cpu().numpy()
    if not math.isfinite(found.loss):
        at = noisy.n_iter_ + found.n_iter
        message = (
            f"The loss became {found.loss} at iteration {at}, in the quench to a loss "
            f"with lr={lr:g}. Try a smaller quench_lr."
        )
        return LossQuench("failed", end, ("DivergenceError", message))
    settings = {
        **plain_descent(end, 0),
        "lr": lr,
        "metrics": guarded(noisy.metrics),
    }
    there = fit(noisy, noisy.random_state, data, settings)
    (row,) = history(there)
    row |= {"phase": "quench_loss", "iteration": noisy.n_iter_ + found.n_iter}
    row["loss"] = found.loss  # a GPU may sum in another order the second time
    rows.append(row)
    if not found.reached:
        return LossQuench("not reached", end, None)
    if not found.n_iter:
        return LossQuench("below before", end, None)
    row |= measure_at(there.risk_, plan.end_metrics, "end_metrics")
    return LossQuench("reached", end, None)


class _Saved:
    """The checkpoints of a descent, which is θ and the number of its steps."""

    def __init__(self, folder: UnitFolder, every: int) -> None:
        self._every = every
        self._last = 0
        path = folder.path
        self._folder = None if path is None else CheckpointFolder(path / "quench_loss")

    def read(self, start: Tensor) -> tuple[Tensor, int]:
        """Return where to go on from; ``start`` where there is no checkpoint."""
        found = None if self._folder is None else self._folder.read()
        if found is None:
            return start, 0
        self._last = int(found["n_iter"])
        return found["theta"].to(start.device), self._last

    def write(self, theta: Tensor, n_iter: int) -> None:
        """Keep a point, if that is due."""
        if self._folder is None or n_iter - self._last < self._every:
            return
        self._last = n_iter
        try:
            self._folder.write({"theta": theta, "n_iter": n_iter})
        except OSError as error:
            warnings.warn(
                f"A checkpoint could not be kept in {self._folder.path}: {error} What "
                "is there is whole, and the descent goes on.",
                stacklevel=2,
            )


def _rate(noisy: Any, plan: Plan) -> float:
    rate: float = noisy.lr if plan.quench_lr is None else plan.quench_lr
    return rate
