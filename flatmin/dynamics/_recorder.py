"""What is written down every ``record_every`` iterations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flatmin.dynamics._metrics import Metric, check_metrics, measure_metrics
from flatmin.noise import NoiseLaw
from flatmin.risk import EmpiricalRisk, Risk

__all__ = ["Recorder"]

Score = Callable[[Tensor], float]

# Columns of a row, and what skorch's history of a block has besides.
_TAKEN = {
    *("iteration", "phase", "loss", "train_score", "valid_loss", "valid_score"),
    *("gradient_norm", "noise_norm", "train_loss", "epoch", "dur", "batches"),
    *("n_steps", "n_clipped", "lr", "train_batch_count", "valid_batch_count"),
}


class Recorder:
    """Measures a point of a run into one row of plain numbers.

    Parameters
    ----------
    risk : EmpiricalRisk
        Of the training data.
    score : callable
        Maps the training outputs, shape (N, ...), to a number.
    validation_risk : EmpiricalRisk, default=None
        Of the validation data.
    validation_score : callable, default=None
        Like ``score``, for its outputs.
    metrics : mapping of str to callable, default=None
        ``metric(risk, theta)`` gives something that ``float`` takes. What one raises
        in the first row is raised; later, a measure that is not defined at a θ
        (ValueError, ArithmeticError, LinAlgError) is NaN there, with a warning that
        tells why, the first time.

    Raises
    ------
    ValueError
        If a metric has the name of a column.
    TypeError
        If it cannot be called.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        score: Score,
        *,
        validation_risk: EmpiricalRisk | None = None,
        validation_score: Score | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        self.risk = risk
        self.score = score
        self.validation_risk = validation_risk
        self.validation_score = validation_score
        self.metrics = dict(metrics or {})
        self._undefined: set[str] = set()  # metrics that have been warned about
        check_metrics(self.metrics, table="history_", taken=_TAKEN)

    def record(
        self,
        iteration: int,
        phase: str,
        theta: Tensor,
        *,
        law: NoiseLaw,
        state: Any,
        batch: Risk | None = None,
        is_first: bool = True,
    ) -> dict[str, Any]:
        """Measure a point.

        Parameters
        ----------
        iteration : int
            Steps from the start of the warm-up.
        phase : {"warmup", "noise"}
            For the row.
        theta : Tensor of shape (D,)
        law : NoiseLaw
        state : object
            The law's.
        batch : Risk, default=None
            What the law sees, if that is not the whole risk.
        is_first : bool, default=True
            Whether nothing is lost yet by an error of a metric.

        Returns
        -------
        dict
            iteration, phase, loss L(θ), train_score, valid_loss and valid_score if
            there are validation data, gradient_norm ‖g₀‖, noise_norm √Tr C of the law
            in the same units, and the metrics. In float32 a noise_norm below 1e-19 is
            rough, below 1e-22 it is 0, and beyond 1e19 infinite, as Tr C is. Where
            L(θ) is not finite, nothing behind it.

        Raises
        ------
        TypeError
            If a metric gives no number.
        Exception
            What a metric raises in the first row.
        """
        loss, gradient = self.risk.value_and_gradient(theta)
        if not math.isfinite(loss):
            return {"iteration": iteration, "phase": phase, "loss": float(loss)}
        seen = self.risk if batch is None else batch
        try:
            noise = law.trace(seen, theta, state).clamp(min=0).sqrt()
        except FloatingPointError:  # on its way to divergence, the loss not yet
            noise = torch.full_like(loss, torch.inf)
        # In float64, where squares neither overflow nor vanish.
        numbers = torch.stack([loss, gradient.double().norm(), noise]).tolist()
        row = {
            "iteration": iteration,
            "phase": phase,
            "loss": numbers[0],
            "train_score": self.score(self.risk.outputs(theta)),
        }
        if self.validation_risk is not None and self.validation_score is not None:
            if self.risk.batch_norm == "batch":  # as a prediction at θ has them
                statistics = self.risk.batch_statistics(theta)
                self.validation_risk.set_batch_statistics(statistics)
            outputs = self.validation_risk.outputs(theta)
            row["valid_loss"] = float(self.validation_risk.value(theta))
            row["valid_score"] = self.validation_score(outputs)
        row["gradient_norm"], row["noise_norm"] = numbers[1:]
        found = measure_metrics(
            self.metrics,
            self.risk,
            theta,
            iteration=iteration,
            is_first=is_first,
            undefined=self._undefined,
        )
        return row | found
