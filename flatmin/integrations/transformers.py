"""A monitor as a callback of Hugging Face's ``Trainer``."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from flatmin.analysis import FlatnessMonitor

__all__ = ["FlatnessCallback"]


class FlatnessCallback(TrainerCallback):
    """Calls a monitor after optimizer steps, and logs what it returns.

    Parameters
    ----------
    monitor : FlatnessMonitor
        Gets the model, the trainer's ``global_step``, and η of the first group.
    trainer : transformers.Trainer, default=None
        Whose ``log`` gets the numbers. Without it they go into the state's
        ``log_history``.
    prefix : str
        Of the names that are logged: ``flatmin_`` by default.

    Examples
    --------
    The numbers are logged as the losses are, and in ``monitor.history_``::

        monitor = FlatnessMonitor(batch, loss="cross_entropy", target="labels")
        trainer.add_callback(FlatnessCallback(monitor, trainer))
    """

    def __init__(
        self,
        monitor: FlatnessMonitor,
        trainer: Trainer | None = None,
        *,
        prefix: str = "flatmin_",
    ) -> None:
        self.monitor = monitor
        self.trainer = trainer
        self.prefix = prefix

    def on_train_begin(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        **parts: Any,
    ) -> None:
        """Measure where the training begins."""
        self._call(state, **parts)

    def on_step_end(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        **parts: Any,
    ) -> None:
        """Measure after a step of the optimizer."""
        self._call(state, **parts)

    def _call(
        self, state: TrainerState, model: Any, optimizer: Any = None, **others: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        lr = None if optimizer is None else optimizer.param_groups[0]["lr"]
        row = self.monitor(model, state.global_step, lr=lr)
        if not row:
            return
        logged = {f"{self.prefix}{key}": row[key] for key in row if key != "step"}
        if self.trainer is not None:
            self.trainer.log(logged)
        else:
            state.log_history.append({**logged, "step": state.global_step})
