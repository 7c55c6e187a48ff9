"""What is written down every ``record_every`` iterations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flatmin.noise import NoiseLaw
from flatmin.risk import EmpiricalRisk

__all__ = ["Recorder"]

Score = Callable[[Tensor], float]
Metric = Callable[[EmpiricalRisk, Tensor], Any]


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
        ``metric(risk, theta)`` gives something that ``float`` takes.
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

    def record(
        self, iteration: int, phase: str, theta: Tensor, law: NoiseLaw, state: Any
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

        Returns
        -------
        dict
            iteration, phase, loss L(θ), train_score, valid_loss and valid_score if
            there are validation data, gradient_norm ‖g₀‖, noise_norm √Tr C in the
            same units, and the metrics.
        """
        loss, gradient = self.risk.value_and_gradient(theta)
        noise = law.trace(self.risk, theta, state).clamp(min=0).sqrt()
        numbers = torch.stack([loss, gradient.norm(), noise]).tolist()
        row = {
            "iteration": iteration,
            "phase": phase,
            "loss": numbers[0],
            "train_score": self.score(self.risk.outputs(theta)),
        }
        if self.validation_risk is not None and self.validation_score is not None:
            outputs = self.validation_risk.outputs(theta)
            row["valid_loss"] = float(self.validation_risk.value(theta))
            row["valid_score"] = self.validation_score(outputs)
        row["gradient_norm"], row["noise_norm"] = numbers[1:]
        for name, metric in self.metrics.items():
            row[name] = float(metric(self.risk, theta))
        return row
