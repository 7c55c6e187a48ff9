"""Many methods from the same starting points, and what their differences are worth."""

from flatmin.comparison._compare import compare_dynamics
from flatmin.comparison._granulated import GranulatedTau, granulated_tau
from flatmin.comparison._merge import merge_comparisons
from flatmin.comparison._merge_folders import merge_checkpoints
from flatmin.comparison._result import ComparisonResult
from flatmin.comparison._statistics import PairedDifference, holm, paired_difference
from flatmin.comparison._steps_to_loss import steps_to_loss

__all__ = [
    "ComparisonResult",
    "GranulatedTau",
    "PairedDifference",
    "compare_dynamics",
    "granulated_tau",
    "holm",
    "merge_checkpoints",
    "merge_comparisons",
    "paired_difference",
    "steps_to_loss",
]
