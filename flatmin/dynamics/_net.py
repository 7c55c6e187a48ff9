"""skorch nets whose epoch is a block of noisy iterations.

A skorch epoch is ``record_every`` iterations here, so history, early stopping,
checkpoints and learning-rate schedules count in blocks. The data loader is built and
never iterated.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from skorch import NeuralNetClassifier, NeuralNetRegressor

from flatmin.dynamics._attached_net import AttachedNet
from flatmin.dynamics._binding import FlatBinding
from flatmin.dynamics._interrupts import is_request

__all__ = ["NoisyNetClassifier", "NoisyNetRegressor", "StopTraining"]

_TRAINS_INSIDE = (
    "This net trains inside its flatmin estimator only. Call fit of the estimator, "
    "with warm_start=True to go on from where it is."
)


class StopTraining(Exception):  # noqa: N818 - control flow, not an error
    """A callback, or a divergence, ends the training in an orderly way."""


class _NoisyNet(AttachedNet):
    """What the two nets share; :meth:`attach` before ``fit_loop``."""

    def bind(self, binding: FlatBinding) -> None:
        """Let the optimizer step the flat θ, where it can.

        Parameters
        ----------
        binding : FlatBinding
            Of this net's ``module_``.
        """
        if not hasattr(self, "optimizer__param_groups"):
            named = list(self.get_all_learnable_params())
            _, settings = self.get_params_for_optimizer("optimizer", named)
            params = binding.params_for(self.optimizer)
            self.optimizer_ = self.optimizer(params, **settings)
            binding.speak_of_parameters(self.optimizer_)

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Refuse before anything is initialised anew; see :meth:`partial_fit`."""
        return self.partial_fit(X, y, **fit_params)

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> Any:
        """Refuse, before a callback is told of a training.

        Raises
        ------
        RuntimeError
            Always.
        """
        raise RuntimeError(_TRAINS_INSIDE)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Give skorch's loader a generator of its own.

        Iterating draws a seed, else from the global generator.

        Returns
        -------
        torch.utils.data.DataLoader
        """
        iterator = super().get_iterator(dataset, training=training)
        iterator.generator = torch.Generator()
        return iterator

    def measure_start(self) -> None:
        """Measure the θ that the first step starts from, unless that has been done."""
        if not self.rows_:
            self.descent_.follow()
            self.descent_.refresh()
            self.descent_.accepts(self.record_row()["loss"])
            if self.descent_.kept is not None:
                self.descent_.kept.keep_if_due(
                    self.descent_.iteration, self.descent_.theta
                )

    def record_row(self) -> dict[str, Any]:
        """Measure where the descent stands, and keep the row."""
        descent = self.descent_
        offset = self._plan_.offset
        row = self.recorder_.record(
            offset + descent.iteration,
            "noise",
            descent.theta,
            law=descent.law,
            state=descent.state,
            batch=descent.batch,
            is_first=not self.rows_,
        )
        if not descent.has_noise:
            row["noise_norm"] = math.nan  # the law's state is that of another θ
        plan = self._plan_
        if descent.law.n_substeps > 1:
            done = descent.iteration * int(descent.law.n_substeps)
            row["n_steps"] = plan.n_steps_before + done
        if plan.n_clipped_before is not None:
            row["n_clipped"] = plan.n_clipped_before + int(descent.n_clipped)
        if descent.has_schedule:
            row["lr"] = float(descent.optimizer.param_groups[0]["lr"])
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
            raise RuntimeError(_TRAINS_INSIDE)
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
        plan = self._plan_
        descent = self.descent_
        optimizer, module = descent.optimizer, descent.binding.module
        if self.optimizer_ is not optimizer or self.module_ is not module:
            raise RuntimeError(
                "A callback has initialised the net anew, so what it would predict "
                "with is not what is trained. Give the module its parameters by "
                "module_params."
            )
        if self._begun_block_ is not None:
            # What callbacks do when a block begins has been done in it.
            descent.load_state_dict(
                self._begun_block_, has_callbacks=bool(self.callbacks)
            )
            self._begun_block_ = None
        else:
            descent.follow()
        self.measure_start()
        left = plan.record_every - descent.iteration % plan.record_every
        block = min(left, plan.max_iter - descent.iteration)
        plan.checkpoints.run(descent, block, plan.progress, self.state_to_save)
        if descent.diverged is None:
            if descent.iteration < plan.max_iter:
                descent.refresh()  # due now rather than after the row
            else:
                descent.refresh_for_row()
        if descent.diverged is None:
            row = self.record_row()
            if not descent.accepts(row["loss"]):
                self.rows_.pop()
        if descent.diverged is not None:
            if self.rows_[-1]["iteration"] < plan.offset + descent.iteration:
                self.record_row()
            self.history.pop()  # skorch's begin of this block, which has no end
            raise StopTraining
        if plan.stopping is not None:
            plan.stopping.judge(row, descent.theta)
        for name, value in row.items():
            if name not in ("phase", "loss", "valid_loss"):
                self.history.record(name, value)

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Tell a callback's request to stop from the user's Ctrl-C, and save blocks.

        Raises
        ------
        StopTraining
            For a callback's request, and where there is no progress any more.
        KeyboardInterrupt
            For the user's.
        """
        if self.callbacks:  # which may predict
            self.descent_.write_statistics()
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt as interrupt:
            if is_request(interrupt):
                raise StopTraining from interrupt
            raise
        if method_name == "on_epoch_end":
            stopping = self._plan_.stopping
            if stopping is not None and stopping.stops:
                raise StopTraining
            self.end_block()


class NoisyNetClassifier(_NoisyNet, NeuralNetClassifier):
    """A skorch classifier that trains by noisy descent."""


class NoisyNetRegressor(_NoisyNet, NeuralNetRegressor):
    """A skorch regressor that trains by noisy descent."""
