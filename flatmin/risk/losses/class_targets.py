"""Which class indices count in a mean, and by how much."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flatmin._utils.columns import as_column

__all__ = ["ClassTargets", "as_integers"]

_INTEGERS = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


_LEFT_OUT = -100  # PyTorch's default


@dataclass(frozen=True)
class ClassTargets:
    """Class indices, class weights and the index that is left out.

    Parameters
    ----------
    weight : Tensor of shape (C,), default=None
        What a target of each class counts in the mean, which PyTorch divides by the sum
        of them over all targets; None counts all alike.
    ignore_index : int, default=-100
        Targets of this value are left out.
    """

    weight: Tensor | None = None
    ignore_index: int = _LEFT_OUT

    def to(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ClassTargets:
        """Return the same with class weights elsewhere, or in another precision."""
        if self.weight is None:
            return self
        return replace(self, weight=self.weight.to(device=device, dtype=dtype))

    def check(self, name: str, y: Tensor, outputs: Tensor) -> Tensor:
        """Return class indices as integers that fit the outputs.

        Parameters
        ----------
        name : str
            Of the loss, for messages.
        y : Tensor of shape (N, \\*positions)
        outputs : Tensor of shape (n, C, \\*positions)

        Returns
        -------
        Tensor of shape (N, \\*positions)

        Raises
        ------
        ValueError
            If shapes or values do not fit.
        """
        shape = ("n", *outputs.shape[1:])
        if y.shape[1:] != outputs.shape[2:]:
            remedy = "class probabilities have the outputs' shape and a floating dtype"
            if y.ndim > 1 and y.shape[1:] == outputs.shape[1:-1]:
                remedy = (
                    "PyTorch wants the classes on the second axis, so pass "
                    f"output_transform=lambda outputs: outputs.{_to_second(outputs)}"
                )
            raise ValueError(
                f"{name} with outputs {shape} needs class indices of shape "
                f"{('n', *outputs.shape[2:])}. Got {('n', *y.shape[1:])} of {y.dtype}; "
                f"{remedy}."
            )
        if y.is_floating_point() and bool((y != y.round()).any()):
            raise ValueError(
                f"{name} needs class indices. Got values with fractions; use "
                "loss='squared_error' for regression."
            )
        self.check_weight(name, outputs.shape[1])
        targets = y.long()
        counted = targets[self.counted(targets)]
        if counted.numel() == 0:
            return targets
        n_classes, low, high = outputs.shape[1], int(counted.min()), int(counted.max())
        if low < 0 or high >= n_classes:
            remedy = f"give the module {high + 1} outputs or encode the labels"
            if low < 0:
                remedy = (
                    f"encode the labels, give what is to be left out {_LEFT_OUT}, or "
                    "pass nn.CrossEntropyLoss(ignore_index=...)"
                )
            raise ValueError(
                f"A module with {n_classes} outputs can have labels 0 to "
                f"{n_classes - 1}. Got labels from {low} to {high}; {remedy}."
            )
        return targets

    def counts(self, targets: Tensor) -> Tensor:
        """Return what each target counts, in the shape (n, \\*positions) of them."""
        counted = self.counted(targets)
        if self.weight is None:
            return counted
        return self.weight[targets.where(counted, 0)] * counted

    def totals(self, targets: Tensor) -> Tensor:
        """Return what the targets of each example count together, shape (n,)."""
        counts = self.counts(targets)
        dtype = None if counts.is_floating_point() else torch.get_default_dtype()
        return counts.reshape(len(counts), -1).sum(1, dtype=dtype)

    def mean(self, losses: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the targets that count of each example, else 0.

        Parameters
        ----------
        losses : Tensor of shape (n, \\*positions)
            Times what their targets count, as PyTorch returns them.
        targets : Tensor of shape (n, \\*positions)

        Returns
        -------
        Tensor of shape (n,)
        """
        if losses.ndim == 1 and self.weight is None:
            return losses
        totals = self.totals(targets)
        return losses.reshape(len(losses), -1).sum(1) / _not_zero(totals, losses)

    def shares(self, targets: Tensor, like: Tensor, smoothing: float) -> Tensor:
        """Return what each target counts in its example's mean.

        Parameters
        ----------
        targets : Tensor of shape (n, \\*positions)
        like : Tensor
            Of the dtype that is wanted.
        smoothing : float
            The part that goes to all classes in equal parts, times their weights: then
            the shares of an example do not add up to one.

        Returns
        -------
        Tensor of shape (n, \\*positions)
        """
        counts, totals = self.counts(targets), self.totals(targets)
        if self.weight is not None and smoothing > 0:
            rest = self.weight.mean() * self.counted(targets)
            counts = (1 - smoothing) * counts + smoothing * rest
        return counts / as_column(_not_zero(totals, like), targets)

    def counted(self, targets: Tensor) -> Tensor:
        """Return which targets are not left out, in their shape."""
        return targets != self.ignore_index

    def check_weight(self, name: str, n_classes: int) -> None:
        """Check that there is a weight for each class, none of them negative."""
        if self.weight is None:
            return
        if self.weight.shape != (n_classes,):
            raise ValueError(
                f"The class weights of {name} must have shape ({n_classes},), one for "
                f"each output. Got {tuple(self.weight.shape)}."
            )
        if not bool((self.weight >= 0).all() and self.weight.isfinite().all()):
            raise ValueError(
                f"The class weights of {name} must be finite and not negative. Got "
                f"{self.weight.tolist()}."
            )


def as_integers(y: Tensor) -> Tensor:
    """Give integers of any size the one that PyTorch's losses take.

    Parameters
    ----------
    y : Tensor

    Returns
    -------
    Tensor
        Booleans stay what they are.
    """
    return y.long() if y.dtype in _INTEGERS else y


def _to_second(outputs: Tensor) -> str:
    return "transpose(1, 2)" if outputs.ndim == 3 else "movedim(-1, 1)"


def _not_zero(totals: Tensor, like: Tensor) -> Tensor:
    return totals.where(totals > 0, 1).to(like.dtype)
