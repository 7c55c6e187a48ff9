"""The iteration θ ← θ - η (g₀ + ε), alone, inside a skorch net, or many at once."""

from flatmin.dynamics._batches import GradientBatches
from flatmin.dynamics._binding import FlatBinding
from flatmin.dynamics._callback_checks import check_callbacks
from flatmin.dynamics._callback_state import callback_settings, store_callbacks
from flatmin.dynamics._checkpoints import Checkpoints
from flatmin.dynamics._criterion import MeanLoss
from flatmin.dynamics._descent import NoisyDescent
from flatmin.dynamics._descent_state import check_rows
from flatmin.dynamics._divergence import DivergenceError
from flatmin.dynamics._early_stopping import EarlyStopping
from flatmin.dynamics._kept_params import KeptParams, check_room, count_kept
from flatmin.dynamics._metrics import check_metrics, measure_metrics
from flatmin.dynamics._monitors import check_monitors
from flatmin.dynamics._net import (
    NoisyNetClassifier,
    NoisyNetRegressor,
    StopTraining,
)
from flatmin.dynamics._optimizers import OPTIMIZERS, resolve_optimizer
from flatmin.dynamics._plain_steps import check_plain_steps
from flatmin.dynamics._proportion import Proportion
from flatmin.dynamics._recorder import Recorder
from flatmin.dynamics._schedule import SCHEDULES, Schedule, make_schedule
from flatmin.dynamics._simulate import simulate
from flatmin.dynamics._simulation import Simulation
from flatmin.dynamics._warmup import WarmupResult, record_warmup, run_warmup

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Checkpoints",
    "DivergenceError",
    "EarlyStopping",
    "FlatBinding",
    "GradientBatches",
    "KeptParams",
    "MeanLoss",
    "NoisyDescent",
    "NoisyNetClassifier",
    "NoisyNetRegressor",
    "Proportion",
    "Recorder",
    "Schedule",
    "Simulation",
    "StopTraining",
    "WarmupResult",
    "callback_settings",
    "check_callbacks",
    "check_metrics",
    "check_monitors",
    "check_plain_steps",
    "check_room",
    "check_rows",
    "count_kept",
    "make_schedule",
    "measure_metrics",
    "record_warmup",
    "resolve_optimizer",
    "run_warmup",
    "simulate",
    "store_callbacks",
]
