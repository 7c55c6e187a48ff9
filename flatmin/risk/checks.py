"""What a module and its data must be before anything is differentiated."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedParameter

__all__ = [
    "KnownWeights",
    "as_input",
    "as_tensor",
    "as_weights",
    "channels_last",
    "normalised_weights",
    "prepare_module",
    "warn_unused_parameters",
]


def prepare_module(
    module: nn.Module, batch_norm: Literal["error", "frozen"]
) -> nn.Module:
    """Return a deep copy in eval mode; the caller's module is not touched.

    Parameters
    ----------
    module : torch.nn.Module
        In any mode.
    batch_norm : {"error", "frozen"}
        What to do with BatchNorm in train mode, where the loss of one example
        depends on the others and a per-example gradient is not defined.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError
        If it is no module.
    ValueError
        If there is nothing to train, a lazy parameter, BatchNorm as above, or an
        Embedding with ``max_norm``.

    Warns
    -----
    UserWarning
        If dropout was active: it is off in a deterministic risk.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module. Got {module!r}.")
    if batch_norm not in ("error", "frozen"):
        raise ValueError(f"batch_norm must be 'error' or 'frozen'. Got {batch_norm!r}.")
    if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
        raise ValueError(
            "The module has lazy parameters without a shape. Run one forward pass "
            "through it before it is used here."
        )
    if not any(p.requires_grad for p in module.parameters()):
        raise ValueError(
            "The module has no parameter with requires_grad=True, so there is nothing "
            "to differentiate by. Unfreeze at least one."
        )
    _check_batch_norm(module, batch_norm)
    if any(_drops(part) for part in module.modules()):
        warnings.warn(
            "The module has active dropout. The risk is a deterministic function of "
            "the parameters, so dropout is switched off (eval mode).",
            UserWarning,
            stacklevel=3,
        )
    copied = copy.deepcopy(module).eval()
    for name, part in copied.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            if part.max_norm is not None:
                raise ValueError(
                    f"{name!r} is an Embedding with max_norm, which rescales its "
                    "weight when it is read: the loss is no function of θ. "
                    "Rescale the weight once and set max_norm=None."
                )
            part.sparse = False  # a layout of the gradient, which is flat here
        if type(part) in (nn.RNN, nn.GRU, nn.LSTM):
            # cuDNN differentiates recurrent layers in train mode only, which without
            # dropout is the same. A subclass may have more that depends on the mode.
            part.dropout = 0.0
            part.train()
    return copied


def _check_batch_norm(module: nn.Module, batch_norm: str) -> None:
    for name, part in module.named_modules():
        if not isinstance(part, _BatchNorm):
            continue
        if not part.track_running_stats:
            raise ValueError(
                f"{name!r} is a BatchNorm without running statistics: the loss of an "
                "example always depends on the others and per-example gradients are "
                "not defined. Use GroupNorm."
            )
        if part.training and batch_norm == "error":
            raise ValueError(
                f"{name!r} is a BatchNorm in train mode: the loss of an example "
                "depends on the others and per-example gradients are not defined. "
                "Pass batch_norm='frozen' to use the running statistics, or replace "
                "it by GroupNorm."
            )


def _drops(part: nn.Module) -> bool:
    if not part.training:
        return False
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
        return part.dropout > 0
    return False


def as_tensor(data: Any, name: str, device: torch.device) -> Tensor:
    """Return data as a tensor without NaN or infinity, with at least one example.

    Parameters
    ----------
    data : array-like or Tensor
        A read-only array is copied.
    name : str
        For messages.
    device : torch.device
        Where it goes.

    Returns
    -------
    Tensor

    Raises
    ------
    TypeError
        If it holds anything but numbers, or cannot be read as an array.
    ValueError
        If it is empty, a single number, or not finite.
    """
    if not isinstance(data, Tensor):
        array = np.asarray(data)
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"{name} must be an array of numbers that holds all examples. Got "
                f"{type(data).__name__} of dtype {array.dtype}; encode labels, and "
                "collect an iterable or a data set into arrays first."
            )
        if not array.flags.writeable or any(step < 0 for step in array.strides):
            array = array.copy()
        data = torch.from_numpy(array)
    tensor: Tensor = data.detach().to(device)
    if tensor.ndim == 0 or tensor.shape[0] == 0:
        raise ValueError(
            f"{name} must hold at least one example along its first axis. "
            f"Got shape {tuple(tensor.shape)}."
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{name} contains NaN or infinity. Remove or impute those entries."
        )
    return tensor


def as_input(X: Tensor, module: nn.Module, dtype: torch.dtype) -> Tensor:
    """Give X the module's dtype; integers stay integers for an Embedding.

    Parameters
    ----------
    X : Tensor of shape (N, ...)
    module : torch.nn.Module
    dtype : torch.dtype
        Of the parameters.

    Returns
    -------
    Tensor of shape (N, ...)
    """
    has_embedding = any(
        isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules()
    )
    is_index = has_embedding and not X.is_floating_point()
    return X.to(torch.long if is_index else dtype)


def channels_last(X: Tensor, module: nn.Module) -> Tensor:
    """Give images the strides that convolutions are fast on.

    Unambiguous with a single channel too, where PyTorch's own
    ``memory_format=torch.channels_last`` leaves the first layer slow (a gradient of
    the LeNet then takes twice as long).

    Parameters
    ----------
    X : Tensor of shape (N, ...)
    module : torch.nn.Module
        Without a two-dimensional convolution X stays as it is.

    Returns
    -------
    Tensor of shape (N, ...)
    """
    has_convolution = any(isinstance(part, nn.Conv2d) for part in module.modules())
    if X.ndim != 4 or not has_convolution:
        return X
    _, c, h, w = X.shape
    strides = (c * h * w, 1, w * c, c)
    if X.stride() == strides:
        return X
    fast = torch.empty_strided(X.shape, strides, dtype=X.dtype, device=X.device)
    return fast.copy_(X)


@dataclass(frozen=True)
class KnownWeights:
    """Weights that another risk of the same examples has: N wᵢ / Σw, or None."""

    values: Tensor | None  # (N,)


def as_weights(
    sample_weight: Any, n_examples: int, device: torch.device
) -> Tensor | None:
    """Return sample weights in float64.

    Parameters
    ----------
    sample_weight : array-like of shape (N,) or None
    n_examples : int
        N.
    device : torch.device

    Returns
    -------
    Tensor of shape (N,) or None

    Raises
    ------
    ValueError
        If the shape does not fit, a weight is negative or not finite, or all are 0.
    """
    if sample_weight is None:
        return None
    weights = as_tensor(sample_weight, "sample_weight", device).double()
    if weights.shape != (n_examples,):
        raise ValueError(
            f"sample_weight must have shape ({n_examples},). "
            f"Got {tuple(weights.shape)}."
        )
    if bool((weights < 0).any()):
        raise ValueError(
            f"sample_weight must not be negative. Got {float(weights.min()):g}."
        )
    if not bool(weights.any()):
        raise ValueError("sample_weight must have a positive sum. Got zeros only.")
    return weights


def normalised_weights(
    sample_weight: Tensor | None, target_weights: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """Return N wᵢ / Σw, w the products of two weights; None when all are equal.

    Parameters
    ----------
    sample_weight : Tensor of shape (N,) or None
    target_weights : Tensor of shape (N,) or None
        What the targets of each example count in the loss's own mean.
    dtype : torch.dtype

    Returns
    -------
    Tensor of shape (N,) or None

    Raises
    ------
    ValueError
        If no target counts.
    """
    given = [w.double() for w in (sample_weight, target_weights) if w is not None]
    if not given:
        return None
    weights = given[0] if len(given) == 1 else given[0] * given[1]
    total = weights.sum()
    if not bool(total > 0):
        raise ValueError(
            "At least one target must count. Got targets that are all left out "
            "(ignore_index), of a class of weight 0, or of an example of sample_weight "
            "0."
        )
    normalised = weights * (len(weights) / total)
    if bool((normalised - 1).abs().max() < 1e-15):
        return None
    return normalised.to(dtype)


def warn_unused_parameters(names: list[str]) -> None:
    """Say which parameters the loss does not depend on.

    Parameters
    ----------
    names : list of str

    Warns
    -----
    UserWarning
        If there are any.
    """
    if names:
        warnings.warn(
            f"The loss does not depend on the parameters {names}: their gradient is "
            "zero. Freeze them (requires_grad=False) to leave them out of θ.",
            UserWarning,
            stacklevel=4,
        )
