"""Small networks, their data, and models of every kind."""

import numpy as np
import torch
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from flatmin import NoisyDiffusionClassifier

from ..oracles import cross_entropy, dense, flat_parameters

N, N_FEATURES, N_CLASSES = 40, 3, 3


def blobs(n=N, seed=0):
    """Return overlapping clouds, one a class; in the float32 that networks train in."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % N_CLASSES
    X = 1.5 * np.eye(N_CLASSES, N_FEATURES)[y] + rng.normal(size=(n, N_FEATURES))
    return X.astype(np.float32), y


def network(n_out=N_CLASSES, seed=0):
    """Return a perceptron in train mode; of 31 parameters with three outputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(N_FEATURES, 4), nn.Tanh(), nn.Linear(4, n_out))


def classifier(**params):
    """Return an unfitted flatmin classifier around that network."""
    settings = {"max_iter": 50, "lr": 0.1, "record_every": 50, "random_state": 0}
    return NoisyDiffusionClassifier(**{"module": network()} | settings | params)


def skorch_net(kind=NeuralNetClassifier, module=None, **params):
    """Return an unfitted skorch net around a module."""
    settings = {"max_epochs": 3, "lr": 0.1, "train_split": None, "verbose": 0}
    module = network() if module is None else module
    return kind(module, **settings | params)


def skorch_classifier(**params):
    """Return an unfitted skorch net that trains logits by cross-entropy."""
    return skorch_net(criterion=nn.CrossEntropyLoss, **params)


def skorch_regressor(**params):
    """Return an unfitted skorch net with one output."""
    return skorch_net(NeuralNetRegressor, network(1), **params)


def truth(module, X, y, losses=cross_entropy, **options):
    """Return everything about a module in dense float64, without flatmin."""
    theta = flat_parameters(module)
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    return dense(module, losses, X, y, theta, **options)


class AnyWidth(nn.Module):
    """Three parameters on the moments of however many features there are."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, X):
        return self.linear(torch.stack([X.mean(1), X.square().mean(1)], 1))
