"""Small data, small networks and quick estimators."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from flatmin import NoisyDiffusionClassifier, NoisyDiffusionRegressor


def blobs(n=60, n_features=4, n_classes=3, seed=0):
    """Return overlapping clouds, one a class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    centres = 2.5 * np.eye(n_classes, n_features)
    return centres[y] + rng.normal(size=(n, n_features)), y


def plane(n=60, n_features=4, n_targets=None, seed=0):
    """Return a linear target with some noise; 1-D unless n_targets is given."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, n_features))
    shape = (n_features,) if n_targets is None else (n_features, n_targets)
    y = X @ rng.normal(size=shape)
    return X, y + 0.1 * rng.normal(size=y.shape)


def _settings(params):
    quick = {"lr": 0.1, "max_iter": 30, "record_every": 10, "random_state": 0}
    if params.get("module") is None:
        quick["module_params"] = {"hidden_layer_sizes": 8}
    return quick | params


def classifier(**params):
    """Return a classifier that trains for 30 iterations."""
    return NoisyDiffusionClassifier(**_settings(params))


def regressor(**params):
    """Return a regressor that trains for 30 iterations."""
    return NoisyDiffusionRegressor(**_settings({"lr": 0.02} | params))


def flat(module):
    """Return a module's parameters in one array."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().numpy()


class Deep(nn.Module):
    """Twenty parameter tensors."""

    def __init__(self, width=64):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.middle = nn.ModuleList(nn.Linear(width, width) for _ in range(8))
        self.last = nn.Linear(width, 3)

    def forward(self, X):
        X = self.first(X)
        for layer in self.middle:
            X = torch.relu(layer(X))
        return self.last(X)


class Scaled(nn.Module):
    """A linear model with settings that its repr does not show."""

    def __init__(self, factor=1.0, activation=torch.tanh):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.factor = factor
        self.activation = activation

    def forward(self, X):
        return self.factor * self.activation(self.linear(X))


class Tokens(nn.Module):
    """Takes whole numbers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 5)
        self.linear = nn.Linear(5, 2)

    def forward(self, X):
        return self.linear(self.embedding(X).mean(1))


class Images(nn.Module):
    """Takes images of one channel."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)
        self.linear = nn.Linear(2, 3)

    def forward(self, X):
        return self.linear(self.convolution(X).relu().mean((2, 3)))


class Auto(nn.Module):
    """An autoencoder of two numbers, X w wᵀ."""

    def __init__(self):
        super().__init__()
        self.code = nn.Linear(2, 1, bias=False)

    def forward(self, x):
        return F.linear(self.code(x), self.code.weight.T)


def reconstruction(module, X, y):
    """Return the squared error of each example; there are no targets."""
    assert y is None
    return (module(X) - X).square().sum(1)


class Pair(nn.Module):
    """Returns its outputs and something else."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, X):
        return self.linear(X), X
