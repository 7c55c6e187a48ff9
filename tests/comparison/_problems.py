"""A problem that a unit solves in a fraction of a second."""

import numpy as np
from sklearn.datasets import load_digits

from flatmin import NoisyDiffusionClassifier


def digits(seed=0, n=80):
    """Return some digits to train on, and others."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(X))
    train, test = order[:n], order[n : 2 * n]
    return X[train] / 16, y[train], X[test] / 16, y[test]


def classifier(**params):
    settings = {"module_params": {"hidden_layer_sizes": 8}, "lr": 0.1, "max_iter": 20}
    settings |= {"warmup": {"max_iter": 30, "lr": 0.3}, "record_every": 10}
    return NoisyDiffusionClassifier(**settings | params)


def norm(risk, theta):
    return theta.norm()
