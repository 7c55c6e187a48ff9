"""Per-example losses and the square root of their Hessian in the output."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from flatmin.risk.losses.class_targets import ClassTargets
from flatmin.risk.losses.saturated import (
    below_the_largest,
    logistic_loss,
    sigmoid_variance,
    softmax_product,
)

__all__ = [
    "LOSSES",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "ExampleLoss",
    "SquaredError",
    "elementwise_targets",
    "unit_targets",
]


class ExampleLoss(ABC):
    """ℓᵢ(f, y) of one example each, and Hᵢ = SᵢSᵢᵀ, its Hessian in the output f.

    Outputs have shape ``(n, *output_shape)``; everything below acts on each example
    by itself.
    """

    name: str

    @abstractmethod
    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """Check the targets against one example's outputs and give them their form.

        Parameters
        ----------
        y : Tensor of shape (N, ...)
            All targets.
        outputs : Tensor of shape (1, \\*output_shape)
            What the module gives for the first example.

        Returns
        -------
        Tensor of shape (N, ...)
        """

    @abstractmethod
    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ℓᵢ, shape (n,)."""

    @abstractmethod
    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """Return Sᵢzᵢ for ``z`` of the outputs' shape."""

    @abstractmethod
    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """Return Hᵢuᵢ for ``u`` of the outputs' shape."""

    def target_weights(self, targets: Tensor) -> Tensor | None:
        """Return what each example counts in the mean over all of them, or None.

        Parameters
        ----------
        targets : Tensor of shape (n, ...)
            In the loss's form.

        Returns
        -------
        Tensor of shape (n,) or None
            None where all count alike.
        """
        return None

    def to(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ExampleLoss:
        """Return the same loss with its tensors elsewhere, or in another precision.

        Parameters
        ----------
        device : torch.device, default=None
            None stays.
        dtype : torch.dtype, default=None
            None stays.

        Returns
        -------
        ExampleLoss
            Itself if it holds no tensors.
        """
        return self

    def model_slope(
        self, outputs: Tensor, targets: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Return rᵢ with E[rᵢrᵢᵀ] = Hᵢ: ∂ℓᵢ/∂f for a target that the model draws.

        What each position of an example counts is that of its own targets.

        Parameters
        ----------
        outputs : Tensor of shape (n, \\*output_shape)
            So is what is returned.
        targets : Tensor of shape (n, ...)
        rng : torch.Generator
            On the outputs' device.

        Raises
        ------
        TypeError
            If the loss is no likelihood by name.
        """
        raise TypeError(
            f"The Fisher matrix needs a likelihood: one of {', '.join(LOSSES)}. Got "
            f"the loss {self.name}; use the Gauss-Newton matrix."
        )


class CrossEntropy(ExampleLoss):
    """-log softmax(f)_y of logits; the mean over positions for sequences.

    Outputs ``(n, C)`` or ``(n, C, *positions)``; targets the class indices of shape
    ``(n,)`` or ``(n, *positions)``, or the probabilities of all classes in the outputs'
    shape: PyTorch's convention. With q the weights that a target gives to the classes,
    the loss is Σ q_c (-log p_c) and its Hessian (Σ q_c) (diag(p) - ppᵀ).

    Parameters
    ----------
    classes : ClassTargets, default=None
        Class weights, and the index that is left out; None for neither.
    label_smoothing : float, default=0.0
        ε: q = w ((1 - ε) e_y + ε/C), w the class weights.
    """

    name = "cross_entropy"

    def __init__(
        self, classes: ClassTargets | None = None, *, label_smoothing: float = 0.0
    ) -> None:
        self.classes = ClassTargets() if classes is None else classes
        self.label_smoothing = label_smoothing

    def to(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> CrossEntropy:
        """See :meth:`ExampleLoss.to`."""
        classes = self.classes.to(device, dtype)
        return CrossEntropy(classes, label_smoothing=self.label_smoothing)

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`."""
        if outputs.ndim < 2 or outputs.shape[1] < 2:
            raise ValueError(
                "cross_entropy needs at least two logits an example, outputs of shape "
                f"(n, C) or (n, C, positions). Got {('n', *outputs.shape[1:])}; use "
                "loss='binary_cross_entropy' for one logit."
            )
        if y.is_floating_point() and y.shape[1:] == outputs.shape[1:]:
            if bool((y < 0).any()):
                raise ValueError(
                    "cross_entropy needs class probabilities that are not negative. "
                    f"Got {float(y.min()):g}."
                )
            if self.classes.ignore_index is not None and self.classes.ignore_index >= 0:
                raise ValueError(
                    "ignore_index belongs to class indices. Got "
                    f"ignore_index={self.classes.ignore_index} and class "
                    "probabilities; leave those examples out, or give them "
                    "sample_weight 0."
                )
            self.classes.check_weight(self.name, outputs.shape[1])
            return y.to(outputs.dtype)
        targets = self.classes.check(self.name, y, outputs)
        if self.label_smoothing > 0:
            self._check_smoothed(targets)
        return targets

    def target_weights(self, targets: Tensor) -> Tensor | None:
        """See :meth:`ExampleLoss.target_weights`."""
        return None if _are_soft(targets) else self.classes.totals(targets)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        if _are_soft(targets):
            return _mean(self._soft(outputs, targets))
        if self.label_smoothing > 0:
            losses = self._smoothed(outputs, targets)
        else:
            losses = self._plain(outputs, targets)
        return self.classes.mean(losses, targets)

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S = √s (diag(√p) - p√pᵀ) at each position, s as in the Hessian."""
        p = outputs.softmax(1)
        a = outputs.argmax(1, keepdim=True)
        others = (p.sqrt() * z).scatter(1, a, 0)
        product = others - p * (p.sqrt() * z).sum(1, keepdim=True)
        # Of the largest class, minus the sum of the others.
        product = product.scatter(1, a, -product.scatter(1, a, 0).sum(1, keepdim=True))
        return product * _root(self._scale(outputs, targets))

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """H = s (diag(p) - ppᵀ) at each of T positions, s = 1/T where all count one."""
        return softmax_product(outputs, u) * self._scale(outputs, targets)

    def model_slope(
        self, outputs: Tensor, targets: Tensor, rng: torch.Generator
    ) -> Tensor:
        """See :meth:`ExampleLoss.model_slope`; √s (p - e_y) at each position."""
        p = outputs.softmax(1)
        # In float32 a class of less than some 1e-7 would never be drawn.
        rows = p.double().movedim(1, -1).flatten(0, -2)
        drawn = torch.multinomial(rows, 1, generator=rng).view(p[:, :1].shape)
        others = p.scatter(1, drawn, 0)
        slope = others.scatter(1, drawn, -others.sum(1, keepdim=True))
        return slope * _root(self._scale(outputs, targets))

    def _plain(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of class indices, times what their targets count."""
        d, rest = below_the_largest(outputs)
        counts = self.classes.counts(targets)
        if counts is None:
            return (rest - d.gather(1, targets.unsqueeze(1))).squeeze(1)
        counted = self.classes.counted(targets)
        own = d.gather(1, targets.where(counted, 0).unsqueeze(1))
        return torch.where(counted, (rest - own).squeeze(1) * counts, 0)

    def _smoothed(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of class indices with label smoothing."""
        return F.cross_entropy(
            # About the largest logit PyTorch's derivatives keep their digits.
            outputs - outputs.max(1, keepdim=True).values,
            targets,
            weight=self.classes.weight,
            ignore_index=_index(self.classes.ignore_index),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def _soft(self, outputs: Tensor, probabilities: Tensor) -> Tensor:
        """Return the losses of class probabilities, shape (n, \\*positions)."""
        q = self._class_weights(probabilities)
        d, rest = below_the_largest(outputs)
        log_p = d - rest
        # A class that is masked, with a logit of -inf, and has no probability adds 0.
        return -(q * torch.where(q == 0, 0, log_p)).sum(1)

    def _class_weights(self, probabilities: Tensor) -> Tensor:
        """Return q, in the shape of the probabilities."""
        q = probabilities
        if self.label_smoothing > 0:
            q = (1 - self.label_smoothing) * q + self.label_smoothing / q.shape[1]
        if self.classes.weight is None:
            return q
        column = (-1, *(1 for _ in q.shape[2:]))
        return q * self.classes.weight.to(q.dtype).view(column)

    def _scale(self, outputs: Tensor, targets: Tensor) -> Tensor | float:
        """Return s, Σ q_c times the share of each position in its example's mean."""
        if _are_soft(targets):
            return self._class_weights(targets).sum(1, keepdim=True) / _n_positions(
                outputs
            )
        shares = self.classes.shares(targets, outputs, self.label_smoothing)
        return 1 / _n_positions(outputs) if shares is None else shares.unsqueeze(1)

    def _check_smoothed(self, targets: Tensor) -> None:
        totals = self.classes.totals(targets)
        if totals is None:
            return
        counted = self.classes.counted(targets).reshape(len(targets), -1).any(1)
        if bool(((totals == 0) & counted).any()):
            raise ValueError(
                "With label smoothing a class of weight 0 must not occur among the "
                "targets: the example would count 0 in the divisor of the mean and "
                "more than that in its sum. Leave those examples out, give the class a "
                "positive weight, or pass the smoothed class probabilities as targets."
            )


class _ElementwiseLoss(ExampleLoss):
    """A loss that is a mean over the C outputs of an example."""

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`."""
        return elementwise_targets(self.name, y, outputs)


class SquaredError(_ElementwiseLoss):
    """(f - y)², the mean over the C outputs."""

    name = "squared_error"

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        return _mean((outputs - targets).square())

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

    def prepare_targets(self, y: Tensor, outputs: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.prepare_targets`."""
        return unit_targets(self.name, super().prepare_targets(y, outputs))

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.per_example`."""
        return _mean(logistic_loss(outputs, targets))

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


LOSSES: dict[str, type[ExampleLoss]] = {
    loss.name: loss for loss in (CrossEntropy, SquaredError, BinaryCrossEntropy)
}


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


def _mean(losses: Tensor) -> Tensor:
    if losses.shape[1:].numel() == 1:  # one number: a mean would take a pass
        return losses.flatten()
    return losses.flatten(1).mean(1)


def _n_positions(outputs: Tensor) -> int:
    return outputs.shape[2:].numel()


def _are_soft(targets: Tensor) -> bool:
    return targets.is_floating_point()


def _root(scale: Tensor | float) -> Tensor | float:
    return scale.sqrt() if isinstance(scale, Tensor) else math.sqrt(scale)


def _index(ignore_index: int | None) -> int:
    return -100 if ignore_index is None else ignore_index
