"""A monitor as a callback of Lightning's ``Trainer``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flatmin.analysis import FlatnessMonitor

__all__ = ["FlatnessCallback"]


class FlatnessCallback(Callback):
    """Calls a monitor after optimizer steps, and logs what it returns.

    Parameters
    ----------
    monitor : FlatnessMonitor
        Gets the LightningModule, whose ``forward`` must return the outputs, the
        trainer's ``global_step``, and η of the first optimizer.
    prefix : str, default="flatmin/"
        Of the names that the loggers get.

    Examples
    --------
    The numbers are in the trainer's loggers and in ``monitor.history_``::

        monitor = FlatnessMonitor(X, y, loss="cross_entropy", every=100)
        trainer = Trainer(callbacks=[FlatnessCallback(monitor)])
    """

    def __init__(self, monitor: FlatnessMonitor, *, prefix: str = "flatmin/") -> None:
        self.monitor = monitor
        self.prefix = prefix
        self._last = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where the training begins."""
        self._call(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure after a step of the optimizer; not where gradients are only added."""
        self._call(trainer, pl_module)

    def _call(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == self._last or not trainer.is_global_zero:
            return
        self._last = step
        lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else None
        row = self.monitor(pl_module, step, lr=lr)
        logged = {f"{self.prefix}{key}": row[key] for key in row if key != "step"}
        for logger in trainer.loggers if row else ():
            logger.log_metrics(logged, step=step)
