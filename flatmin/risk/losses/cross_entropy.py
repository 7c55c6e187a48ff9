"""Softmax cross-entropy of single examples, of class indices or distributions."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from flatmin.risk.losses.class_targets import ClassTargets
from flatmin.risk.losses.example_loss import (
    ExampleLoss,
    mean_over_positions,
)
from flatmin.risk.losses.positions import losses_by_position, product_by_position
from flatmin.risk.losses.saturated import (
    below_the_largest,
    softmax_product,
)

__all__ = ["CrossEntropy"]


class CrossEntropy(ExampleLoss):
    """-log softmax(f)_y of logits; the mean over positions for sequences.

    Outputs ``(n, C)`` or ``(n, C, *positions)``; targets the class indices of shape
    ``(n,)`` or ``(n, *positions)``, or the probabilities of all classes in the outputs'
    shape: PyTorch's convention. With q the weights that a target gives to the classes,
    the loss is Σ q_c (-log p_c) and its Hessian (Σ q_c) (diag(p) - ppᵀ).

    Parameters
    ----------
    classes : ClassTargets, default=None
        Class weights, and the index that is left out; None is -100 without weights.
    label_smoothing : float, default=0.0
        ε: q = w ((1 - ε) e_y + ε/C), w the class weights.
    """

    name = "cross_entropy"
    classes: ClassTargets
    is_likelihood = True

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
            if self.classes.ignore_index >= 0:
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
            losses = losses_by_position(self._soft, outputs, targets)
            return mean_over_positions(losses)
        of = self._smoothed if self.label_smoothing > 0 else self._of_indices
        losses = losses_by_position(of, outputs, targets)
        return self.classes.mean(losses, targets)

    def root_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """S = √s (diag(√p) - p√pᵀ) at each position, s as in the Hessian."""
        scale = self._scale(outputs, targets).sqrt()
        return product_by_position(_root_product, outputs, targets, z, scale)

    def sign_product(self, outputs: Tensor, targets: Tensor, z: Tensor) -> Tensor:
        """See :meth:`ExampleLoss.sign_product`; S is triangular."""
        scale = self._scale(outputs, targets).sqrt()
        return product_by_position(_triangular_product, outputs, targets, z, scale)

    def hessian_product(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        """H = s (diag(p) - ppᵀ) at each of T positions, s = 1/T where all count one."""
        scale = self._scale(outputs, targets)
        return product_by_position(_hessian_product, outputs, targets, u, scale)

    def model_slope(
        self, outputs: Tensor, targets: Tensor, rng: torch.Generator
    ) -> Tensor:
        """See :meth:`ExampleLoss.model_slope`; √s (p - e_y) at each position."""
        scale = self._scale(outputs, targets).sqrt()
        slope = partial(_drawn_slope, rng)
        return product_by_position(slope, outputs, targets, scale)

    def _of_indices(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of class indices, times what their targets count."""
        d, rest = below_the_largest(outputs)
        counted = self.classes.counted(targets)
        own = d.gather(1, targets.where(counted, 0).unsqueeze(1))
        losses = (rest - own).squeeze(1)
        if self.classes.weight is not None:
            losses = losses * self.classes.counts(targets)
        return losses.where(counted, 0)

    def _smoothed(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of class indices with label smoothing."""
        return F.cross_entropy(
            # PyTorch's derivatives lose digits where logits are large. The loss is the
            # same for logits less their largest. Its second derivative fails where the
            # classes are last in memory (torch 2.13).
            (outputs - outputs.max(1, keepdim=True).values).contiguous(),
            targets,
            weight=self.classes.weight,
            ignore_index=self.classes.ignore_index,
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

    def _scale(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return s, Σ q_c times the share of each position in its example's mean."""
        if _are_soft(targets):
            return self._class_weights(targets).sum(1, keepdim=True) / _n_positions(
                outputs
            )
        return self.classes.shares(targets, outputs, self.label_smoothing).unsqueeze(1)

    def _check_smoothed(self, targets: Tensor) -> None:
        totals = self.classes.totals(targets)
        counted = self.classes.counted(targets).reshape(len(targets), -1).any(1)
        if bool(((totals == 0) & counted).any()):
            raise ValueError(
                "With label smoothing a class of weight 0 must not occur among the "
                "targets: the example would count 0 in the divisor of the mean and "
                "more than that in its sum. Leave those examples out, give the class a "
                "positive weight, or pass the smoothed class probabilities as targets."
            )


def _root_product(outputs: Tensor, z: Tensor, scale: Tensor) -> Tensor:
    p = outputs.softmax(1)
    a = outputs.argmax(1, keepdim=True)
    others = (p.sqrt() * z).scatter(1, a, 0)
    product = others - p * (p.sqrt() * z).sum(1, keepdim=True)
    # The entry of the largest class is minus the sum of the others: by itself it would
    # be a difference of numbers near 1.
    product = product.scatter(1, a, -product.scatter(1, a, 0).sum(1, keepdim=True))
    return product * scale


def _triangular_product(outputs: Tensor, z: Tensor, scale: Tensor) -> Tensor:
    # With the classes from the most probable one down and q_j = Σ_{i>j} p_i, column j
    # of S is √(p_j q_j / q_{j-1}) (e_j - Σ_{i>j} (p_i / q_j) e_i): first the largest
    # class against all others, then the next one against those behind it (Tanabe and
    # Sagae, J. R. Stat. Soc. B 54 (1992) 211-219). Late in a training on digits,
    # ‖JᵀSz‖² has a ninth of the variance that it has with √p on the diagonal.
    # Sums of small numbers, which half precision would not hold.
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    p, order = outputs.softmax(1, dtype=dtype).sort(1, descending=True)
    sums = p.flip(1).cumsum(1).flip(1)  # q_{j-1}, from the smallest p up
    q = torch.cat([sums[:, 1:], torch.zeros_like(sums[:, :1])], 1)
    shares = z.to(dtype) * (p / sums).sqrt().masked_fill(sums == 0, 0)
    before = (shares / q.sqrt()).masked_fill(q == 0, 0).cumsum(1)
    before = torch.cat([torch.zeros_like(q[:, :1]), before[:, :-1]], 1)
    sorted_product = shares * q.sqrt() - p * before
    product = torch.zeros_like(p).scatter(1, order, sorted_product)
    return product.to(torch.promote_types(outputs.dtype, z.dtype)) * scale


def _drawn_slope(rng: torch.Generator, outputs: Tensor, scale: Tensor) -> Tensor:
    p = outputs.softmax(1)
    # In float32 a class of less than some 1e-7 would never be drawn.
    rows = p.double().movedim(1, -1).flatten(0, -2)
    drawn = torch.multinomial(rows, 1, generator=rng).view(p[:, :1].shape)
    others = p.scatter(1, drawn, 0)
    slope = others.scatter(1, drawn, -others.sum(1, keepdim=True))
    return slope * scale


def _hessian_product(outputs: Tensor, u: Tensor, scale: Tensor) -> Tensor:
    return softmax_product(outputs, u) * scale


def _n_positions(outputs: Tensor) -> int:
    return outputs.shape[2:].numel()


def _are_soft(targets: Tensor) -> bool:
    return targets.is_floating_point()
