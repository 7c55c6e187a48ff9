"""Digits with wrong labels, and a small ReLU network: many seeds at once."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from flatmin import EmpiricalRisk
from flatmin.datasets import corrupt_labels


def make_digits(n_train=300, n_wrong=45):
    """Return training and test data; labels of some training images are redrawn."""
    X, y = load_digits(return_X_y=True)
    X = ((X / 16 - 0.3) / 0.37).astype(np.float32)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(X))
    train, test = order[:n_train], order[600:]
    wrong = y[train].copy()
    wrong[:n_wrong] = rng.integers(10, size=n_wrong)
    return X[train], wrong, X[test], y[test]


def digits_of_seed(seed, n_train):
    """Return X in [0, 1], wrong labels among y, and other X and y, as a seed draws."""
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(seed).permutation(len(X))
    train, others = order[:n_train], order[n_train:]
    noisy, _ = corrupt_labels(y[train], fraction=0.15, random_state=seed)
    return X[train] / 16, noisy, X[others] / 16, y[others]


def make_network(width=24):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def make_risk(data, width=24):
    return EmpiricalRisk(make_network(width), "cross_entropy", *data[:2])


def starts(seeds, width=24):
    """Return θ of each seed's initialisation, shape (n_seeds, D)."""
    rows = []
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = make_network(width)
        rows.append(nn.utils.parameters_to_vector(network.parameters()).detach())
    return torch.stack(rows)


def errors_on_test(theta, data, width=24):
    """Return the share of test images that each θ gets wrong."""
    network, errors = make_network(width), []
    X, y = (torch.as_tensor(part) for part in data[2:])
    for row in theta:
        nn.utils.vector_to_parameters(row, network.parameters())
        with torch.no_grad():
            errors.append(float((network(X).argmax(1) != y).float().mean()))
    return errors
