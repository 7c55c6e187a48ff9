"""Chains of calls keep their types: mypy reads this file, and pytest runs it."""

# The constructors are typed as lightly as scikit-learn's.
# mypy: disable-error-code="no-untyped-call, no-untyped-def"

from typing import Any, assert_type

import numpy as np
import torch

from flatmin import (
    CurvatureAnalyzer,
    NoiseCovarianceAnalyzer,
    NoisyDiffusionClassifier,
    NoisyDiffusionRegressor,
    SharpnessScorer,
)
from flatmin.analysis import Alignment, Eigenpairs, Trace

X: Any = np.eye(4, dtype=np.float32)
y = [0, 1, 0, 1]


def test_analyzers() -> None:
    net = torch.nn.Linear(4, 2)
    curvature = CurvatureAnalyzer(net, loss="cross_entropy").fit(X, y)
    assert_type(curvature, CurvatureAnalyzer)
    assert_type(curvature.eigen(k=3), Eigenpairs)
    assert_type(curvature.set_params(random_state=0).fit(X, y).trace(), Trace)
    noise = NoiseCovarianceAnalyzer(net, loss="cross_entropy").fit(X, y)
    assert_type(noise.alignment(1), Alignment)
    scorer = SharpnessScorer(net, loss="cross_entropy", n_draws=2).fit(X, y)
    assert_type(scorer, SharpnessScorer)


def test_estimators() -> None:
    classifier = NoisyDiffusionClassifier(max_iter=1).fit(X, y)
    assert_type(classifier, NoisyDiffusionClassifier)
    assert_type(classifier.set_params(method__x=1), NoisyDiffusionClassifier)
    regressor = NoisyDiffusionRegressor(max_iter=1, lr=1e-3).fit(X, y)
    assert_type(regressor, NoisyDiffusionRegressor)
