"""Images with wrong labels, and small networks for them: many seeds at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from flatmin import EmpiricalRisk
from flatmin.datasets import corrupt_labels, fetch_fashion_mnist

N_TRAIN, N_WRONG = 300, 45
# Of what is tried on digits and then on Fashion-MNIST, as its protocol says.
FASHION = (
    "300 images of Fashion-MNIST of 14 x 14 pixels, 45 of them with labels drawn anew, "
    "10,000 test images"
)
SECOND_SEEDS = tuple(range(28, 36))


@dataclass(frozen=True)
class Problem:
    """Images and a network whose width can be chosen."""

    data: Callable[[], tuple]  # X, y, X_test, y_test
    make_network: Callable[[int], nn.Module]
    width: int

    def make_risk(self, width=None):
        """Return the risk of a network on the training images."""
        network = self.make_network(width or self.width)
        return EmpiricalRisk(network, "cross_entropy", *self.data()[:2])

    def starts(self, seeds, width=None):
        """Return θ of each seed's initialisation, shape (n_seeds, D)."""
        rows = []
        for seed in seeds:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                network = self.make_network(width or self.width)
            rows.append(nn.utils.parameters_to_vector(network.parameters()).detach())
        return torch.stack(rows)

    def errors_on_test(self, theta, width=None):
        """Return the share of test images that each θ gets wrong."""
        network, errors = self.make_network(width or self.width), []
        X, y = (torch.as_tensor(part) for part in self.data()[2:])
        for row in theta:
            nn.utils.vector_to_parameters(row, network.parameters())
            with torch.no_grad():
                errors.append(float((network(X).argmax(1) != y).float().mean()))
        return errors


def redrawn(y, rng):
    """Return labels, the first N_WRONG of them drawn anew."""
    y = y.copy()
    y[:N_WRONG] = rng.integers(10, size=N_WRONG)
    return y


@lru_cache
def digits():
    """Return X, y, X_test and y_test of the digits."""
    X, y = load_digits(return_X_y=True)
    X = ((X / 16 - 0.3) / 0.37).astype(np.float32)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(X))
    train, test = order[:N_TRAIN], order[600:]
    return X[train], redrawn(y[train], rng), X[test], y[test]


def digits_of_seed(seed, n_train):
    """Return X in [0, 1], wrong labels among y, and other X and y, as a seed draws."""
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(seed).permutation(len(X))
    train, others = order[:n_train], order[n_train:]
    noisy, _ = corrupt_labels(y[train], fraction=0.15, random_state=seed)
    return X[train] / 16, noisy, X[others] / 16, y[others]


def digits_network(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


@lru_cache
def fashion(subset="train"):
    """Return Fashion-MNIST, (14, 14) pixels in a row, and its labels."""
    X, y = fetch_fashion_mnist(subset=subset, return_X_y=True)
    X = X.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(len(X), 196)
    return ((X - 0.3) / 0.37).astype(np.float32), y


@lru_cache
def small_fashion():
    """Return X, y, X_test and y_test of Fashion-MNIST."""
    X, y = fashion()
    rng = np.random.default_rng(0)
    train = rng.permutation(len(X))[:N_TRAIN]
    return X[train], redrawn(y[train], rng), *fashion("test")


def fashion_of_seed(seed, n_train):
    """Return X, wrong labels among y, and the test images, as a seed draws."""
    X, y = fashion()
    chosen = np.random.RandomState(seed).permutation(len(X))[:n_train]
    noisy, _ = corrupt_labels(y[chosen], fraction=0.15, random_state=seed)
    return X[chosen], noisy, *fashion("test")


def fashion_network(width):
    """Return a network of two hidden layers of tanh."""
    return nn.Sequential(
        nn.Linear(196, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, 10),
    )


PROBLEMS = {
    "digits": Problem(digits, digits_network, 24),
    "fashion_mnist": Problem(small_fashion, fashion_network, 32),
}
