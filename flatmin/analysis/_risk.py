"""From a fitted model and data to a risk and its θ: the one place that knows models."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from flatmin._utils.arrays import check_readable
from flatmin._utils.messages import naming
from flatmin._utils.trees import is_nested
from flatmin.analysis._skorch_loss import is_of_skorch, skorch_loss
from flatmin.risk import EmpiricalRisk, ExampleLoss, ModuleLoss, resolve_loss
from flatmin.risk.data.source import is_data_set, split_targets
from flatmin.risk.losses.resolve_loss import LossLike
from flatmin.risk.network.batch_statistics import trains_batch_norm
from flatmin.risk.network.module_checks import check_batch_norm
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.network.outputs import OutputTransform
from flatmin.risk.network.prepared_module import BatchNorm, evaluation_mode

__all__ = [
    "is_flatmin",
    "loss_of",
    "reader_of",
    "risk_of_model",
    "training_risk",
    "unwrap",
    "warn_of_batch_norm",
]


def risk_of_model(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    use_class_weight: bool = True,
    loss: LossLike | None = None,
    output_transform: OutputTransform | None = None,
    target: str | None = None,
    positions: Literal["all", "example"] | None = None,
    l2: float | None = None,
    batch_norm: BatchNorm | None = None,
    hvp: Literal["exact", "finite_difference"] = "exact",
    compile: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    distributed: bool = False,
) -> EmpiricalRisk:
    """Return the risk of a fitted model on data, with the loss of its training.

    Parameters
    ----------
    estimator : flatmin estimator or its ``net_``, skorch net or torch.nn.Module
        Also inside a ``FrozenEstimator``, a fitted search or a ``Pipeline``, through
        whose earlier steps X goes. It is not touched.
    X : array-like, Tensor, mapping, tuple or data set
    y : array-like or Tensor; None with a data set
        Of a flatmin estimator, labels as in its ``fit``; else in the loss's form.
    sample_weight : array-like of shape (n_samples,), default=None
    use_class_weight : bool, default=True
        Of a flatmin estimator; False ignores its class weights.
    loss : str, loss module or callable, default=None
        None is the model's own, which a bare module does not have.
    output_transform : callable, default=None
        As in :class:`~flatmin.EmpiricalRisk`; a flatmin estimator has its own.
    target : str, default=None
        The same.
    positions : {"all", "example"}, default=None
        The same; None is "all" where the model has none of its own.
    l2 : float, default=None
        The same; None is 0.
    batch_norm : {"error", "frozen", "batch"}, default=None
        The same; None is "frozen".
    hvp : {"exact", "finite_difference"}, default="exact"
        As in :class:`~flatmin.EmpiricalRisk`, as is the next.
    compile : bool, default=False
    device : torch.device or str, default=None
        None is the model's.
    dtype : {"float32", "float64"}, default=None
        None is the model's.
    distributed : bool, default=False
        As in :class:`~flatmin.EmpiricalRisk`.

    Returns
    -------
    EmpiricalRisk
        Of a copy in eval mode; its ``params()`` are the model's θ.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    TypeError
        If it is none of these.
    ValueError
        If loss and data do not fit the model, or y is missing.
    """
    model, before = unwrap(estimator)
    if X is not None:
        for steps in before:
            X = steps.transform(X)
    if is_flatmin(model):
        _refuse_own(
            model,
            loss,
            output_transform=output_transform,
            target=target,
            positions=positions,
            l2=l2,
            batch_norm=batch_norm,
        )
        target = reader_of(model).target
    X, y = split_targets(X, y, target)
    _check_targets(model, loss, X, y)
    if is_flatmin(model):
        return model.make_risk(
            X,
            y,
            sample_weight,
            use_class_weight=use_class_weight,
            device=device,
            dtype=dtype,
            distributed=distributed,
        ).to(hvp=hvp, compile=compile)
    module, loss = _module_and_loss(model, loss)
    batch_norm = batch_norm or "frozen"
    check_batch_norm(module, batch_norm)  # in the mode that it has
    # A skorch net evaluates InstanceNorm by running statistics, in any mode.
    module = _in_evaluation_mode(module, own_statistics=isinstance(model, nn.Module))
    return EmpiricalRisk(
        module,
        loss,
        _checked_inputs(X),
        y,
        sample_weight=sample_weight,
        output_transform=output_transform,
        target=target,
        positions=positions or "all",
        l2=0.0 if l2 is None else l2,
        batch_norm=batch_norm,
        hvp=hvp,
        compile=compile,
        device=device,
        dtype=dtype,
        distributed=distributed,
    )


def _in_evaluation_mode(module: nn.Module, *, own_statistics: bool) -> nn.Module:
    if any(part.training for part in module.modules()):
        return evaluation_mode(copy_module(module), own_statistics=own_statistics)
    return module


def training_risk(
    estimator: Any,
    caller: str,
    *,
    loss: LossLike | None = None,
    output_transform: OutputTransform | None = None,
    target: str | None = None,
    positions: Literal["all", "example"] | None = None,
    l2: float | None = None,
    batch_norm: BatchNorm | None = None,
    hvp: Literal["exact", "finite_difference"] = "exact",
    compile: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    distributed: bool = False,
) -> EmpiricalRisk:
    """Return the risk on the training data that a flatmin estimator still holds.

    Parameters
    ----------
    estimator : flatmin estimator
        Also wrapped as in :func:`risk_of_model`.
    caller : str
        Who asks, for the message.
    loss, output_transform, target, positions, l2, batch_norm : None
        The estimator has its own.
    hvp : {"exact", "finite_difference"}, default="exact"
        As in :class:`~flatmin.EmpiricalRisk`, as is the next.
    compile : bool, default=False
    device : torch.device or str, default=None
        None is the model's.
    dtype : {"float32", "float64"}, default=None
        None is the model's; the data keep the digits that they were trained on with.
    distributed : bool, default=False
        Must be that of the training.

    Returns
    -------
    EmpiricalRisk
        The estimator's own, unless another device or dtype is wanted.

    Raises
    ------
    NotFittedError
        If there are no data, or the estimator is not fitted.
    TypeError
        If it is none of a model.
    ValueError
        If one of what it has is given.
    """
    model, _ = unwrap(estimator)
    if not (is_flatmin(model) or _is_skorch(model) or isinstance(model, nn.Module)):
        raise TypeError(_NO_MODEL.format(model))
    why = f"a {type(model).__name__} holds no training data"
    if is_flatmin(model):
        _refuse_own(
            model,
            loss,
            output_transform=output_transform,
            target=target,
            positions=positions,
            l2=l2,
            batch_norm=batch_norm,
        )
        check_is_fitted(model)
        # The net of an estimator reads data as it does, and holds none.
        if hasattr(model, "risk_"):
            risk = model.risk_
            if risk is not None:
                _check_distributed(risk, distributed)
                return risk.to(device=device, dtype=dtype, hvp=hvp, compile=compile)
            why = (
                f"this {type(model).__name__} no longer holds its training data "
                "(store_data=False, or it was pickled, as for another process)"
            )
    raise NotFittedError(
        f"This {caller} has no data: {why}. Call fit(X, y) first, with the data to "
        "analyse on."
    )


def _check_distributed(risk: EmpiricalRisk, distributed: bool) -> None:
    """Raise if ranks share the training data and not the analysis, or else."""
    if risk.distributed != bool(distributed):
        raise ValueError(
            "Training data are analysed by the processes that hold them. Got "
            f"distributed={bool(distributed)}, and a model that was trained with "
            f"distributed={risk.distributed}; pass that, or fit(X, y) first."
        )


def warn_of_batch_norm(estimator: Any) -> None:
    """Say that a bare module's BatchNorm is taken out of train mode.

    A net, or an estimator, predicts in evaluation mode whatever mode it was left in.

    Parameters
    ----------
    estimator : object
        A model, also wrapped as in :func:`risk_of_model`.

    Warns
    -----
    UserWarning
        If there is one.
    """
    model, _ = unwrap(estimator)
    if isinstance(model, nn.Module) and trains_batch_norm(model):
        warnings.warn(
            "The module has BatchNorm in train mode. It is analysed with its running "
            "statistics, as in evaluation mode; pass batch_norm='frozen' to say so, or "
            "batch_norm='batch' for the statistics of the data.",
            UserWarning,
            stacklevel=5,
        )


def unwrap(estimator: Any) -> tuple[Any, list[Any]]:
    """Return the model inside, and the transformers that X goes through before.

    Parameters
    ----------
    estimator : object
        A model, also wrapped as in :func:`risk_of_model`.

    Returns
    -------
    model : object
    before : list of transformer
    """
    before = []
    while not isinstance(estimator, nn.Module):
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            if len(estimator) > 1:
                before.append(estimator[:-1])
            estimator = estimator[-1]
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            break
    return estimator, before


_NO_MODEL = (
    "estimator must be a flatmin estimator, a skorch net or a torch.nn.Module, also "
    "inside a Pipeline or FrozenEstimator. Got {!r}."
)


# Floors on one level do not import each other, so a model is known by what it has.
def is_flatmin(model: Any) -> bool:
    """Say whether a model is a flatmin estimator, or the net of one."""
    return hasattr(model, "make_risk")


def reader_of(model: Any) -> Any:
    """Return what a flatmin estimator reads data with, as of its fit."""
    # set_params may have changed those of the model.
    return getattr(getattr(model, "net_", model), "reader_", model)


def _is_skorch(model: Any) -> bool:
    return hasattr(model, "module") and hasattr(model, "criterion")


def _check_targets(model: Any, loss: LossLike | None, X: Any, y: Any) -> None:
    """Raise if there are no targets, and the loss needs some."""
    trained = getattr(reader_of(model), "loss", None)
    needs_y = not isinstance(trained if loss is None else loss, ModuleLoss)
    if y is None and needs_y and not is_data_set(X):
        raise ValueError(
            "A gradient requires y to be passed, but the target y is None: the loss "
            "compares outputs with targets."
        )


def loss_of(model: Any, loss: LossLike | None) -> ExampleLoss | ModuleLoss:
    """Return the loss of a module or a skorch net, as it is now.

    Parameters
    ----------
    model : torch.nn.Module or skorch net
    loss : str, loss module or callable; None
        None is that of the net.

    Returns
    -------
    ExampleLoss or ModuleLoss
    """
    _, loss = _module_and_loss(model, loss)
    return loss if isinstance(loss, ModuleLoss) else resolve_loss(loss)


def _module_and_loss(model: Any, loss: LossLike | None) -> tuple[nn.Module, LossLike]:
    """Return the network of a module or a skorch net, and the loss."""
    if isinstance(model, nn.Module):
        if loss is None:
            raise ValueError(
                f"The module {type(model).__name__} has no loss of its own. Pass the "
                "one it was trained with, such as loss='cross_entropy' or "
                "loss='squared_error'."
            )
        return model, loss
    if _is_skorch(model):
        if not hasattr(model, "module_"):
            raise NotFittedError(
                f"This {type(model).__name__} is not fitted yet. Call its fit first, "
                "or initialize to analyse it untrained."
            )
        if not is_of_skorch(model, "infer"):
            raise ValueError(
                f"{type(model).__name__} has an infer of its own, so what its module "
                "is given is not known. Pass module_, with the loss and the inputs "
                "that it takes."
            )
        return model.module_, skorch_loss(model) if loss is None else loss
    raise TypeError(_NO_MODEL.format(model))


def _checked_inputs(X: Any) -> Any:
    """Return what is array-like as an array; the risk checks anything else."""
    if isinstance(X, Tensor) or is_data_set(X) or is_nested(X):
        return X
    check_readable("X", X)
    with naming("X"):
        return check_array(X, allow_nd=True, dtype="numeric", input_name="X")


def _refuse_own(model: Any, loss: Any, **settings: Any) -> None:
    for name, given in settings.items():
        if given is not None:
            raise ValueError(
                f"A {type(model).__name__} is analysed as it was trained, with its own "
                f"{name}. Got {name}={given!r}; leave it at None."
            )
    if loss is not None:
        raise ValueError(
            f"A {type(model).__name__} is analysed with the loss that it was trained "
            f"with. Got loss={loss!r}; leave it at None, or pass the estimator's "
            "module_ to analyse another loss."
        )
