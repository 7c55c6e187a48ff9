"""skorch nets whose epoch is a block of noisy iterations.

A skorch epoch is ``record_every`` iterations here, so history, early stopping,
checkpoints and learning-rate schedules count in blocks. The data loader is built and
never iterated.
"""

from __future__ import annotations

import dis
from collections.abc import Callable
from typing import Any

from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Callback, EpochScoring, LRScheduler

from flatmin.dynamics._descent import NoisyDescent
from flatmin.dynamics._recorder import Recorder

__all__ = [
    "NoisyNetClassifier",
    "NoisyNetRegressor",
    "StopTraining",
    "check_callbacks",
]

_BATCH_EVENTS = ("on_batch_begin", "on_batch_end", "on_grad_computed")


class StopTraining(Exception):  # noqa: N818 - control flow, not an error
    """A callback, or a divergence, ends the training in an orderly way."""


class _NoisyNet:
    """What the two nets share; :meth:`attach` before ``fit_loop``."""

    def attach(
        self,
        descent: NoisyDescent,
        recorder: Recorder,
        *,
        max_iter: int,
        record_every: int,
        offset: int,
        progress: Callable[[int], Any],
    ) -> None:
        """Give the net what an epoch runs.

        Parameters
        ----------
        descent : NoisyDescent
            Steps this net's ``optimizer_``.
        recorder : Recorder
        max_iter : int
            Iterations in all epochs together.
        record_every : int
            Iterations an epoch.
        offset : int
            Iterations before the first one here.
        progress : callable
            Called with 1 after each iteration.
        """
        self.descent_ = descent
        self.recorder_ = recorder
        self.rows_ = []
        self._plan_ = (max_iter, record_every, offset, progress)

    def record_(self) -> dict[str, Any]:
        """Measure where the descent stands, and keep the row."""
        descent = self.descent_
        offset = self._plan_[2]
        row = self.recorder_.record(
            offset + descent.iteration,
            "noise",
            descent.theta,
            descent.law,
            descent.state,
        )
        self.rows_.append(row)
        return row

    def run_single_epoch(
        self,
        iterator: Any,
        training: bool,
        prefix: str,
        step_fn: Any,
        **fit_params: Any,
    ) -> None:
        """Run one block, or note the validation loss of its end."""
        del step_fn, fit_params
        if iterator is None:
            return
        if not hasattr(self, "descent_"):
            raise RuntimeError(
                "This net trains inside its flatmin estimator only. Call fit of the "
                "estimator, with warm_start=True to go on from where it is."
            )
        if training:
            self._run_block()
        if not self.rows_:
            return
        row = self.rows_[-1]
        self.history.new_batch()
        self.history.record_batch(
            f"{prefix}_loss", row["loss" if training else "valid_loss"]
        )
        self.history.record_batch(f"{prefix}_batch_size", len(iterator.dataset))
        self.history.record(f"{prefix}_batch_count", 1)

    def _run_block(self) -> None:
        max_iter, record_every, _, progress = self._plan_
        descent = self.descent_
        block = min(record_every, max_iter - descent.iteration)
        descent.run(block, progress)
        if descent.diverged is None:
            row = self.record_()
            if not descent.check(row["loss"]):
                self.rows_.pop()
        if descent.diverged is not None:
            raise StopTraining
        for name, value in row.items():
            if name not in ("phase", "loss", "valid_loss"):
                self.history.record(name, value)

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Tell skorch's request to stop from the user's Ctrl-C.

        skorch's callbacks stop a training by ``raise KeyboardInterrupt``. A real one
        is raised by the interpreter between two instructions, never by a raise.

        Raises
        ------
        StopTraining
            For a callback's request.
        KeyboardInterrupt
            For the user's.
        """
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt as interrupt:
            trace = interrupt.__traceback__
            while trace.tb_next is not None:
                trace = trace.tb_next
            code = trace.tb_frame.f_code.co_code
            if code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]:
                raise StopTraining from interrupt
            raise

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        # ``module`` is the instance that became ``module_``: once is enough.
        for name in ("descent_", "recorder_", "_plan_", "module"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.module = self.module_


class NoisyNetClassifier(_NoisyNet, NeuralNetClassifier):
    """A skorch classifier that trains by noisy descent."""


class NoisyNetRegressor(_NoisyNet, NeuralNetRegressor):
    """A skorch regressor that trains by noisy descent."""


def check_callbacks(callbacks: list[Any] | None) -> None:
    """Refuse callbacks that would never be called.

    Parameters
    ----------
    callbacks : list of skorch callbacks or (name, callback) pairs, or None

    Raises
    ------
    ValueError
        If one of them works on batches.
    """
    for item in callbacks or []:
        callback = item[1] if isinstance(item, tuple) else item
        kind = callback if isinstance(callback, type) else type(callback)
        if issubclass(kind, EpochScoring):
            continue  # its batch event fills a cache that is not used here
        if issubclass(kind, LRScheduler):
            works_on_batches = getattr(callback, "step_every", "epoch") == "batch"
        else:
            works_on_batches = any(
                getattr(kind, event) is not getattr(Callback, event)
                for event in _BATCH_EVENTS
            )
        if works_on_batches:
            raise ValueError(
                f"The callback {kind.__name__} works on batches, and there are none "
                "here: a skorch epoch is a block of record_every iterations. Use a "
                "callback with on_epoch_end, or LRScheduler(step_every='epoch')."
            )
