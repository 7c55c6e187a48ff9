"""Displays in scikit-learn's manner: they hold arrays, and ``plot`` draws them."""

from flatmin.plotting._alignment import AlignmentDisplay
from flatmin.plotting._comparison import ComparisonDisplay
from flatmin.plotting._landscape import LandscapeDisplay
from flatmin.plotting._sharpness import SharpnessDisplay
from flatmin.plotting._spectrum import SpectrumDisplay
from flatmin.plotting._trajectory import TrajectoryDisplay

__all__ = [
    "AlignmentDisplay",
    "ComparisonDisplay",
    "LandscapeDisplay",
    "SharpnessDisplay",
    "SpectrumDisplay",
    "TrajectoryDisplay",
]
