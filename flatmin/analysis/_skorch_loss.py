"""The loss that a skorch net was trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flatmin.risk import ExampleLoss, resolve_loss
from flatmin.risk.losses.callable_loss import CallableLoss
from flatmin.risk.losses.class_targets import ClassTargets

__all__ = ["is_of_skorch", "skorch_loss"]

_PLAIN = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.MSELoss: "squared_error",
    nn.BCEWithLogitsLoss: "binary_cross_entropy",
}


def skorch_loss(net: Any) -> ExampleLoss:
    """Return the training loss of a skorch net, example by example.

    ``CrossEntropyLoss``, ``MSELoss`` and ``BCEWithLogitsLoss`` are what they are for
    PyTorch on the whole of the data, also with class weights, an ``ignore_index`` (a
    minibatch of skorch's is divided by its own weights) and a ``pos_weight``. With
    ``NLLLoss`` a ``NeuralNetClassifier`` takes the module's outputs p for probabilities
    and trains by -log(p_y + ε), ε the rounding of their dtype. That is a function of p:
    its Gauss-Newton matrix, split at p, is the empirical Fisher matrix, not the one of
    cross-entropy on logits.

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
    for step in ("get_loss", "train_step_single", "train_step"):
        if not is_of_skorch(net, step):
            raise ValueError(
                f"{type(net).__name__} has a {step} of its own, so its training loss "
                "cannot be told from its criterion. Pass it as loss=, a function of "
                "(outputs, targets) that returns one loss an example."
            )
    if getattr(criterion, "reduction", "mean") != "mean":
        raise ValueError(
            f"The criterion {name} of this net has reduction={criterion.reduction!r}, "
            "which depends on the batch, and a risk is a mean over examples. Pass the "
            "loss that is meant as loss=, and scale what comes out."
        )
    if type(criterion) is nn.NLLLoss:
        if net.get_loss.__qualname__.startswith("NeuralNetClassifier"):
            return _log_of_probabilities(net)
        raise ValueError(
            "NLLLoss takes the outputs of this net for log-probabilities, in which it "
            "is linear. Pass loss='cross_entropy': after log_softmax it is the same "
            "loss, with a Gauss-Newton matrix."
        )
    loss = resolve_loss(criterion)
    if _PLAIN.get(type(criterion)) not in (loss.name, "binary_cross_entropy"):
        raise ValueError(
            f"The criterion {name} of this net is not one of CrossEntropyLoss, "
            "NLLLoss, MSELoss and BCEWithLogitsLoss. Pass the loss "
            "that is meant as loss=: a name, a loss module, or a function of (outputs, "
            "targets) that returns one loss an example."
        )
    return loss


def is_of_skorch(net: Any, method: str) -> bool:
    """Return whether a method of a net is one that skorch has written.

    Parameters
    ----------
    net : skorch.NeuralNet
    method : str

    Returns
    -------
    bool
    """
    module: str = getattr(net, method).__module__
    return module.partition(".")[0] == "skorch"


class _NegativeLog:
    """-w_y log(p_y + ε); a class, which can be pickled."""

    def __init__(self, eps: float, weight: Tensor | None, ignore_index: int) -> None:
        self.eps = eps
        self.weight = weight
        self.ignore_index = ignore_index

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight = self.weight
        return nn.functional.nll_loss(
            torch.log(outputs + self.eps),
            targets,
            weight=None if weight is None else weight.to(outputs),
            ignore_index=self.ignore_index,
            reduction="none",
        )


def _log_of_probabilities(net: Any) -> ExampleLoss:
    # skorch added the eps of the dtype that it trained in, whatever it is analysed in.
    eps = torch.finfo(next(net.module_.parameters()).dtype).eps
    weight, ignore_index = net.criterion_.weight, net.criterion_.ignore_index
    return CallableLoss(
        _NegativeLog(eps, weight, ignore_index),
        name="NLLLoss of log(p + eps)",
        classes=ClassTargets(weight, ignore_index),
    )
