"""scikit-learn estimators that train a PyTorch module under designed noise."""

from flatmin.estimators._classifier import NoisyDiffusionClassifier
from flatmin.estimators._regressor import NoisyDiffusionRegressor
from flatmin.estimators._trajectory import Trajectory

__all__ = ["NoisyDiffusionClassifier", "NoisyDiffusionRegressor", "Trajectory"]
