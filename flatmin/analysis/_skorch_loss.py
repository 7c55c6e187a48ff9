"""The loss that a skorch net was trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flatmin.risk import ExampleLoss, resolve_loss
from flatmin.risk.losses import CallableLoss

__all__ = ["skorch_loss"]

_PLAIN = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.MSELoss: "squared_error",
    nn.BCEWithLogitsLoss: "binary_cross_entropy",
}


def skorch_loss(net: Any) -> ExampleLoss:
    """Return the training loss of a skorch net, example by example.

    Plain ``CrossEntropyLoss``, ``MSELoss`` and ``BCEWithLogitsLoss`` are what they are
    for PyTorch. With ``NLLLoss`` a ``NeuralNetClassifier`` takes the module's outputs p
    for probabilities and trains by -log(p_y + ε), ε the rounding of their dtype. That
    is a function of p: its Gauss-Newton matrix, split at p, is the empirical Fisher
    matrix, not the one of cross-entropy on logits.

    Parameters
    ----------
    net : skorch.NeuralNet
        Initialised.

    Returns
    -------
    ExampleLoss

    Raises
    ------
    ValueError
        If the criterion, or what the net makes of it, is not known here.

    Examples
    --------
    >>> from skorch import NeuralNetRegressor
    >>> skorch_loss(NeuralNetRegressor(nn.Linear(2, 1)).initialize()).name
    'squared_error'
    """
    criterion = net.criterion_
    name = type(criterion).__name__
    get_loss = type(net).get_loss
    if get_loss.__module__.partition(".")[0] != "skorch":
        raise ValueError(
            f"{type(net).__name__} has a get_loss of its own, so its training loss "
            "cannot be told from its criterion. Pass it as loss=, a function of "
            "(outputs, targets) that returns one loss an example."
        )
    if getattr(criterion, "reduction", "mean") != "mean":
        raise ValueError(
            f"The criterion {name} of this net has reduction={criterion.reduction!r}, "
            "which depends on the batch, and a risk is a mean over examples. Pass the "
            "loss that is meant as loss=, and scale what comes out."
        )
    plain = getattr(criterion, "weight", None) is None
    plain &= getattr(criterion, "ignore_index", -100) == -100
    if type(criterion) is nn.NLLLoss and plain:
        if get_loss.__qualname__.startswith("NeuralNetClassifier"):
            return _log_of_probabilities(net)
        raise ValueError(
            "NLLLoss takes the outputs of this net for log-probabilities, in which it "
            "is linear. Pass loss='cross_entropy': after log_softmax it is the same "
            "loss, with a Gauss-Newton matrix."
        )
    loss = resolve_loss(criterion)
    if _PLAIN.get(type(criterion)) != loss.name:
        raise ValueError(
            f"The criterion {name} of this net is not one of plain CrossEntropyLoss, "
            "NLLLoss, MSELoss and BCEWithLogitsLoss, without weights, smoothing or an "
            "ignored class. Pass the loss that is meant as loss=: a name, a loss "
            "module, or a function of (outputs, targets) that returns one loss an "
            "example."
        )
    return loss


class _NegativeLog:
    """-log(p_y + ε); a class, which can be pickled."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        log_p = torch.log(outputs + self.eps)
        return nn.functional.nll_loss(log_p, targets.long(), reduction="none")


def _log_of_probabilities(net: Any) -> ExampleLoss:
    # Of the dtype that it was trained in, not of the one it is analysed in.
    eps = torch.finfo(next(net.module_.parameters()).dtype).eps
    return CallableLoss(_NegativeLog(eps), name="NLLLoss of log(p + eps)")
