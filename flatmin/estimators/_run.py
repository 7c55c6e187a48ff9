"""What one call of fit works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from flatmin.dynamics import GradientBatches, Recorder
from flatmin.estimators._examples import Examples
from flatmin.estimators._settings import FolderSettings, WarmupSettings
from flatmin.estimators._trajectory import Trajectory
from flatmin.noise import NoiseLaw
from flatmin.risk import EmpiricalRisk

__all__ = ["Run", "make_batches"]


@dataclass
class Run:
    """The parts of a training, and how far it is before the noise."""

    module: nn.Module
    loss: Any  # as for a risk
    risk: EmpiricalRisk
    recorder: Recorder
    law: NoiseLaw
    seeds: dict[str, int]
    generators: dict[str, torch.Generator]  # of noise and batches
    examples: Examples
    weights: np.ndarray | None
    validation: Examples | None
    continues: bool  # where an earlier fit ended
    n_iter_before: int  # noisy iterations of earlier fits
    n_steps_before: int  # optimizer steps in them
    offset: int  # iterations of earlier fits and of the warm-up
    rows: list[dict[Any, Any]]
    warmup: WarmupSettings | None  # None also where an earlier fit goes on
    folder: FolderSettings | None
    before: Trajectory | None  # of the earlier fit that this one goes on from
    diverged: str | None = None

    @property
    def streamed(self) -> bool:
        """Whether some of the data are read whenever they are needed."""
        validation = self.validation
        return self.examples.streamed or (
            validation is not None and validation.streamed
        )


def make_batches(
    estimator: Any, risk: EmpiricalRisk, rng: torch.Generator
) -> GradientBatches | None:
    """Return the batches of the iterations, or None if each sees all examples.

    Parameters
    ----------
    estimator : estimator
    risk : EmpiricalRisk
    rng : torch.Generator
        For them alone.

    Returns
    -------
    GradientBatches or None
    """
    size = estimator.gradient_batch_size
    if size is None or size >= risk.n_examples:
        return None
    return GradientBatches(risk, int(size), rng)
