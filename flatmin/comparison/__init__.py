"""Many methods from the same starting points, and what their differences are worth."""

from flatmin.comparison._compare import compare_dynamics
from flatmin.comparison._merge import merge_comparisons
from flatmin.comparison._merge_folders import merge_checkpoints
from flatmin.comparison._result import ComparisonResult
from flatmin.comparison._statistics import PairedDifference, holm, paired_difference

__all__ = [
    "ComparisonResult",
    "PairedDifference",
    "compare_dynamics",
    "holm",
    "merge_checkpoints",
    "merge_comparisons",
    "paired_difference",
]
