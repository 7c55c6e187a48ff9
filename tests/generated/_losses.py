"""Losses as they are handed in, and the same in plain torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ._draws import some


@dataclass(frozen=True)
class Loss:
    """What is handed in, and the same as one number an example in plain torch."""

    given: Any
    right: Callable
    targets: str  # "classes", "numbers" or "probabilities"
    own: bool = False  # a callable of the user's: targets arrive as they are
    counts: Callable | None = None  # what each example counts in PyTorch's mean


def cross_entropy(f, y, weight=None, smoothing=0.0, ignored=-100):
    """The mean over positions of (1 - s) wᵧ ℓᵧ + (s/C) Σ w ℓ, ℓ = -log softmax(f).

    PyTorch's mean is that of these over that of ``class_counts``.
    """
    w = torch.ones(f.shape[1]) if weight is None else weight
    weighed = w.to(f).view(1, -1, *(1 for _ in f.shape[2:])) * -f.log_softmax(1)
    of_y = weighed.gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1)
    losses = (1 - smoothing) * of_y + smoothing * weighed.mean(1)
    return (losses * (y != ignored)).reshape(len(f), -1).mean(1)


def class_counts(y, weight=None, ignored=-100):
    """The mean over positions of what their targets count."""
    w = torch.ones(1 + y.max()) if weight is None else weight
    return (w.double()[y] * (y != ignored)).reshape(len(y), -1).mean(1)


def mean_of(elementwise):
    """Average over all that belongs to an example."""

    def losses(f, y):
        return elementwise(f, y.reshape(f.shape)).reshape(len(f), -1).mean(1)

    return losses


def log_cosh(f, y):
    return (f - y) - F.logsigmoid(2 * (f - y))


def binary(f, y, positive=None):
    return F.binary_cross_entropy_with_logits(
        f, y, reduction="none", pos_weight=positive
    )


def huber(f, y):
    d = (f - y).abs()
    return torch.where(d < 1, d * d / 2, d - 0.5)


def unreduced(f, y):
    return F.cross_entropy(f, y, reduction="none")


@st.composite
def losses(draw, c):
    """A loss for c outputs."""
    reduction = draw(some(["mean", "sum", "none"]))
    weight = torch.tensor([0.5, 2.0, 0.0])[:c]
    smoothing = draw(some([0.0, 0.25]))
    found = [
        Loss("squared_error", mean_of(lambda f, y: (f - y) ** 2), "numbers"),
        Loss(
            nn.MSELoss(reduction=reduction),
            mean_of(lambda f, y: (f - y) ** 2),
            "numbers",
        ),
        Loss(nn.HuberLoss(reduction=reduction), mean_of(huber), "numbers", own=True),
        Loss(log_cosh, mean_of(log_cosh), "numbers", own=True),
        Loss("binary_cross_entropy", mean_of(binary), "probabilities"),
        Loss(nn.BCEWithLogitsLoss, mean_of(binary), "probabilities"),
        Loss(
            nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0), reduction=reduction),
            mean_of(lambda f, y: binary(f, y, torch.tensor(2.0))),
            "probabilities",
            own=True,
        ),
    ]
    if c > 1:
        found += [
            Loss("cross_entropy", cross_entropy, "classes"),
            Loss(nn.CrossEntropyLoss(reduction=reduction), cross_entropy, "classes"),
            Loss(unreduced, cross_entropy, "classes", own=True),
            Loss(
                nn.CrossEntropyLoss(
                    weight, reduction=reduction, label_smoothing=smoothing
                ),
                lambda f, y: cross_entropy(f, y, weight, smoothing),
                "classes",
                counts=lambda y: class_counts(y, weight),
            ),
            Loss(
                nn.CrossEntropyLoss(ignore_index=1, reduction=reduction),
                lambda f, y: cross_entropy(f, y, ignored=1),
                "classes",
                counts=lambda y: class_counts(y, ignored=1),
            ),
        ]
    return draw(some(found))
