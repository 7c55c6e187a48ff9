"""A monitor as a callback of skorch nets, and so of flatmin's estimators."""

from __future__ import annotations

from typing import Any, Literal

from skorch.callbacks import Callback

from flatmin._utils.names import check_known
from flatmin.analysis import FlatnessMonitor

__all__ = ["FlatnessCallback"]


class FlatnessCallback(Callback):
    """Calls a monitor after batches or epochs, and records what it returns.

    Parameters
    ----------
    monitor : FlatnessMonitor
        Gets ``net.module_``, the number of batches or epochs so far, and η of the first
        group of the optimizer.
    steps : {"batch", "epoch"}, default="epoch"
        What is counted. In flatmin's estimators an epoch is a block of
        ``record_every`` iterations; there are no batches.

    Notes
    -----
    The numbers are in the rows of ``net.history`` and in ``monitor.history_``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from flatmin import FlatnessMonitor, NoisyDiffusionClassifier
    >>> from flatmin.integrations.skorch import FlatnessCallback
    >>> X, y = load_iris(return_X_y=True)
    >>> monitor = FlatnessMonitor(X, y, loss="cross_entropy", budget=30)
    >>> callbacks = [("flatness", FlatnessCallback(monitor))]
    >>> clf = NoisyDiffusionClassifier(
    ...     max_iter=20, record_every=10, callbacks=callbacks, random_state=0
    ... ).fit(X, y)
    >>> monitor.history_["step"].tolist()
    [0, 1, 2]
    """

    def __init__(
        self, monitor: FlatnessMonitor, steps: Literal["batch", "epoch"] = "epoch"
    ) -> None:
        self.monitor = monitor
        self.steps = steps

    @property
    def works_on_batches(self) -> bool:
        """Whether it does, which flatmin's estimators ask."""
        return self.steps == "batch"

    def initialize(self) -> FlatnessCallback:
        """Begin to count."""
        check_known("steps", self.steps, ("batch", "epoch"))
        self.n_steps_ = 0
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Measure where the training begins."""
        self._call(net)

    def on_batch_end(self, net: Any, training: bool = False, **_: Any) -> None:
        """Measure after a step of the optimizer."""
        if training and self.steps == "batch":
            self.n_steps_ += 1
            self._call(net)

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Measure after an epoch."""
        if self.steps == "epoch":
            self.n_steps_ += 1
            self._call(net)

    def _call(self, net: Any) -> None:
        lr = net.optimizer_.param_groups[0]["lr"]
        row = self.monitor(net.module_, self.n_steps_, lr=lr)
        if net.history:
            for key in row:
                if key != "step":
                    net.history.record(key, row[key])
