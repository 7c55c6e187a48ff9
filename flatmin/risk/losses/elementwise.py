"""Losses of each number of the output: squared error and binary cross-entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatmin.risk.losses.example_loss import ExampleLoss, mean_over_positions
from flatmin.risk.losses.saturated import (
    logistic_loss,
    sigmoid_variance,
)

__all__ = ["BinaryCrossEntropy", "SquaredError", "elementwise_targets", "unit_targets"]


class _ElementwiseLoss(ExampleLoss):
    """A loss that is a mean over the C outputs of an example."""

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`."""
        return elementwise_targets(self.name, y, outputs)


class SquaredError(_ElementwiseLoss):
    """(f - y)², the mean over the C outputs."""

    name = "squared_error"
    is_likelihood = True

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        return mean_over_positions((outputs - targets).square())

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S = √(2/C) I."""
        return z * math.sqrt(2 / outputs.shape[1:].numel())

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """H = (2/C) I."""
        return u * (2 / outputs.shape[1:].numel())

    def model_slope(
        self, outputs: Tensor, targets: Tensor, rng: torch.Generator
    ) -> Tensor:
        """See :meth:`ExampleLoss.model_slope`; normal with covariance (2/C) I."""
        z = torch.randn(
            outputs.shape, generator=rng, dtype=outputs.dtype, device=outputs.device
        )
        return self.root_product(outputs, targets, z)


class BinaryCrossEntropy(_ElementwiseLoss):
    """-y log σ(f) - (1-y) log σ(-f) of logits, the mean over the C outputs."""

    name = "binary_cross_entropy"
    is_likelihood = True

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`."""
        return unit_targets(self.name, super().prepare_targets(y, outputs))

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        return mean_over_positions(logistic_loss(outputs, targets))

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.right`; of each output, whose class is the second."""
        return ((outputs > 0) == (targets > 0.5)).flatten()

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S = diag(√(p(1-p)/C))."""
        return z * (sigmoid_variance(outputs) / outputs.shape[1:].numel()).sqrt()

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """H = diag(p(1-p)/C)."""
        return u * (sigmoid_variance(outputs) / outputs.shape[1:].numel())

    def model_slope(
        self, outputs: Tensor, targets: Tensor, rng: torch.Generator
    ) -> Tensor:
        """See :meth:`ExampleLoss.model_slope`; p - y, over √C."""
        p, rest = outputs.sigmoid(), (-outputs).sigmoid()
        # In float64, and from the side of the smaller probability: 1 - 1e-9 is 1.
        rare = torch.bernoulli(torch.minimum(p, rest).double(), generator=rng).bool()
        slope = torch.where(rare ^ (outputs > 0), -rest, p)
        return slope / math.sqrt(outputs.shape[1:].numel())


def elementwise_targets(name: str, y: Tensor, outputs: Tensor) -> Tensor:
    """Give targets that are compared with the outputs one by one their shape.

    Parameters
    ----------
    name : str
        Of the loss, for messages.
    y : Tensor of shape (N, ...)
        May have more or fewer axes of size one.
    outputs : Tensor of shape (n, \\*output_shape)

    Returns
    -------
    Tensor of shape (N, \\*output_shape)
        In the outputs' dtype.

    Raises
    ------
    ValueError
        If shapes differ by more than that.
    """
    shape = outputs.shape[1:]
    if [n for n in y.shape[1:] if n != 1] != [n for n in shape if n != 1]:
        raise ValueError(
            f"{name} compares outputs and targets one by one. Got outputs of "
            f"shape {('n', *shape)} and targets of shape {('n', *y.shape[1:])}."
        )
    return y.to(outputs.dtype).reshape(-1, *shape)


def unit_targets(name: str, targets: Tensor) -> Tensor:
    """Return targets that lie between 0 and 1.

    Parameters
    ----------
    name : str
        Of the loss, for messages.
    targets : Tensor

    Returns
    -------
    Tensor
        As they are.

    Raises
    ------
    ValueError
        If one does not.
    """
    low, high = float(targets.min()), float(targets.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{name} needs targets in [0, 1]. Got values from {low:g} to {high:g}."
        )
    return targets
