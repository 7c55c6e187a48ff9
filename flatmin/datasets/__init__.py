"""Data sets of the paper's experiments, and label noise for any other."""

from flatmin.datasets._cifar10 import fetch_cifar10
from flatmin.datasets._corrupt import corrupt_labels
from flatmin.datasets._cubic import make_cubic_regression
from flatmin.datasets._fashion_mnist import fetch_fashion_mnist
from flatmin.datasets._noisy_fashion_mnist import load_noisy_fashion_mnist

__all__ = [
    "corrupt_labels",
    "fetch_cifar10",
    "fetch_fashion_mnist",
    "load_noisy_fashion_mnist",
    "make_cubic_regression",
]
