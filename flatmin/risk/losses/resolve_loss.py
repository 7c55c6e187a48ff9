"""From a name, a loss module or a function to losses of single examples."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from flatmin._utils.messages import message
from flatmin._utils.names import check_known
from flatmin.risk.losses.callable_loss import CallableLoss
from flatmin.risk.losses.class_targets import ClassTargets
from flatmin.risk.losses.cross_entropy import CrossEntropy
from flatmin.risk.losses.elementwise import BinaryCrossEntropy, SquaredError
from flatmin.risk.losses.example_loss import ExampleLoss
from flatmin.risk.losses.module_loss import ModuleLoss
from flatmin.risk.losses.next_token import NextToken

__all__ = ["LOSSES", "LossLike", "resolve_loss"]

LOSSES: dict[str, type[ExampleLoss]] = {
    loss.name: loss
    for loss in (CrossEntropy, SquaredError, BinaryCrossEntropy, NextToken)
}

LossLike = (
    str
    | ExampleLoss
    | ModuleLoss
    | nn.Module
    | type[nn.Module]
    | Callable[[Tensor, Tensor], Tensor]
)

# Loss modules whose outputs and targets are compared one by one.
_ELEMENTWISE = (
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.PoissonNLLLoss,
    nn.KLDivLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
)
_UNIT_TARGETS = (nn.BCELoss, nn.BCEWithLogitsLoss)


def resolve_loss(loss: LossLike) -> ExampleLoss:
    """Turn a name, a loss module or a callable into an :class:`ExampleLoss`.

    On the whole of the data a loss module gives what PyTorch's gives with its default
    reduction; its own reduction does not matter, and a copy with ``reduction="none"``
    is used. So L is, for

    - ``CrossEntropyLoss`` and ``NLLLoss``: the sum over all targets divided by the sum
      of the class weights of the targets that occur, without those equal to
      ``ignore_index`` (by default -100). With label smoothing, too. Class probabilities
      as targets count one each. "cross_entropy" is that of ``CrossEntropyLoss()``.
    - "next_token": ``CrossEntropyLoss`` of the logits at each token and the label of
      the next one, over all of them that are not -100, as the causal language models
      of Hugging Face compute their ``loss`` from ``labels``; outputs (n, T, V), and
      labels (n, T) that are not shifted.
    - ``KLDivLoss``: the mean over all numbers, with ``reduction="batchmean"`` the mean
      over examples of the sum over an example's numbers.
    - all others: the mean over all numbers that ``reduction="none"`` gives. Weights in
      ``BCELoss``, ``BCEWithLogitsLoss``, ``MultiMarginLoss`` and
      ``MultiLabelSoftMarginLoss`` multiply and do not change the divisor, as in
      PyTorch.

    In a minibatch flatmin takes the plain mean of its ℓ̃ᵢ = N wᵢℓᵢ / Σw, PyTorch's
    modules divide by the minibatch's own weights. A function's losses of an example
    are averaged, and then the examples'. Loss modules that are called with more than
    outputs and targets (``CTCLoss``, ``GaussianNLLLoss``, ``TripletMarginLoss``,
    ``CosineEmbeddingLoss``, ``MarginRankingLoss``) are refused: wrap them in a function
    that takes the outputs apart. So are those with parameters of their own.

    ``CrossEntropyLoss``, ``MSELoss`` and plain ``BCEWithLogitsLoss`` become the named
    losses, whose output Hessian is known in closed form.

    Parameters
    ----------
    loss : str, torch.nn.Module, callable or ExampleLoss
        Names: "cross_entropy", "squared_error", "binary_cross_entropy", "next_token".

    Returns
    -------
    ExampleLoss

    Raises
    ------
    ValueError
        If the name is unknown, or a loss module has parameters to train.
    TypeError
        If it is none of these, or a :class:`ModuleLoss`, which belongs to a risk.

    Examples
    --------
    >>> resolve_loss(nn.MSELoss(reduction="sum")).name
    'squared_error'
    """
    if isinstance(loss, ExampleLoss):
        return loss
    if isinstance(loss, ModuleLoss):
        raise TypeError(
            "A ModuleLoss is no function of outputs and targets: it is given the "
            "module. Pass it to EmpiricalRisk, or as loss= of an estimator or an "
            "analyzer."
        )
    if isinstance(loss, str):
        check_known("loss", loss, LOSSES)
        return LOSSES[loss]()
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        return _resolve_module(_instance(loss))
    if isinstance(loss, nn.Module):
        return _resolve_module(loss)
    if callable(loss) and not isinstance(loss, type):
        return CallableLoss(loss, name=getattr(loss, "__name__", repr(loss)))
    raise TypeError(
        f"loss must be a name ({', '.join(LOSSES)}), a loss module or a callable. "
        f"Got {loss!r}."
    )


def _instance(kind: type[nn.Module]) -> nn.Module:
    try:
        return kind()
    except TypeError as error:
        raise TypeError(
            "loss must be a name, a loss module or a callable; a class is one that can "
            f"be made without arguments. Got {kind.__name__}: {message(error)} Pass an "
            "instance."
        ) from error


def _resolve_module(module: nn.Module) -> ExampleLoss:
    kind, name = type(module), type(module).__name__
    if any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            f"A loss must not have parameters to train, of which θ would know nothing. "
            f"Got {name} with some; make them a part of the module, or call "
            "requires_grad_(False) on the loss to hold them."
        )
    forward = kind.forward  # a subclass may have another name only
    if forward is nn.MSELoss.forward:
        return SquaredError()
    if isinstance(module, nn.CrossEntropyLoss) and (
        forward is nn.CrossEntropyLoss.forward
    ):
        return CrossEntropy(
            ClassTargets(module.weight, module.ignore_index),
            label_smoothing=module.label_smoothing,
        )
    if (
        forward is nn.BCEWithLogitsLoss.forward
        and module.weight is None
        and module.pos_weight is None
    ):
        return BinaryCrossEntropy()
    classes = None
    if isinstance(module, nn.NLLLoss) and forward is nn.NLLLoss.forward:
        classes = ClassTargets(module.weight, module.ignore_index)
    sums = getattr(module, "reduction", None) == "batchmean"
    single = whole = copy.deepcopy(module)
    if hasattr(module, "reduction"):
        single, whole = (_with_reduction(module, name) for name in ("none", "mean"))
    return CallableLoss(
        single,
        name=name,
        classes=classes,
        elementwise=any(forward is known.forward for known in _ELEMENTWISE),
        unit_targets=any(forward is known.forward for known in _UNIT_TARGETS),
        sums=sums,
        whole=whole if single is not whole and not sums else None,
    )


def _with_reduction(module: nn.Module, reduction: str) -> nn.Module:
    copied = copy.deepcopy(module)
    setattr(copied, "reduction", reduction)  # noqa: B010 - for mypy
    return copied
