"""A module's copy as a risk evaluates it: its mode, and what that may not change."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

from flatmin._utils.names import check_known
from flatmin._utils.placement import resolve_device, resolve_dtype
from flatmin.risk.network.batch_statistics import keep_batch_statistics
from flatmin.risk.network.module_checks import (
    check_batch_norm,
    check_parameters,
    has_active_dropout,
    trainable,
)
from flatmin.risk.network.module_copy import copy_module, registered

__all__ = [
    "BatchNorm",
    "beside",
    "evaluation_mode",
    "fresh_copy",
    "keep_own_statistics",
    "prepare_module",
    "settings",
    "settle",
]

BatchNorm = Literal["error", "frozen", "batch"]


def prepare_module(
    module: nn.Module,
    batch_norm: BatchNorm,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
) -> nn.Module:
    """Return a deep copy in eval mode; the caller's module is not touched.

    Parameters
    ----------
    module : torch.nn.Module
        In any mode. An InstanceNorm in train mode takes each example's own statistics,
        in the copy too.
    batch_norm : {"error", "frozen", "batch"}
        What to do with BatchNorm in train mode, where the loss of one example
        depends on the others and a per-example gradient is not defined. "batch" lets
        every BatchNorm, in any mode, take the statistics of its input.
    device : torch.device, str or None
        None is that of the first trainable parameter.
    dtype : torch.dtype, str or None
        Of real tensors; complex ones get as many digits. None is that of the first
        trainable parameter.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError
        If it is no module, is compiled by TorchScript, or cannot be copied.
    ValueError
        If there is nothing to train, a lazy parameter, a complex one, two in one place,
        BatchNorm as above, or an Embedding with ``max_norm``.

    Warns
    -----
    UserWarning
        If dropout was active: it is off in a deterministic risk.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module. Got {module!r}.")
    check_known("batch_norm", batch_norm, get_args(BatchNorm))
    check_parameters(module)
    check_batch_norm(module, batch_norm)
    if any(has_active_dropout(part) for part in module.modules()):
        warnings.warn(
            "The module has active dropout. The risk is a deterministic function of "
            "the parameters, so dropout is switched off (eval mode).",
            UserWarning,
            stacklevel=6,
        )
    first = trainable(module)[0]
    copied = copy_module(
        module,
        device=resolve_device(first.device if device is None else device),
        dtype=resolve_dtype(first.dtype if dtype is None else dtype),
    )
    evaluation_mode(copied, batch_statistics=batch_norm == "batch")
    settle(copied)
    return copied


def evaluation_mode(
    module: nn.Module, *, own_statistics: bool = True, batch_statistics: bool = False
) -> nn.Module:
    """Switch a module to eval mode without a change of what it computes of θ.

    A module whose ``eval`` writes its tensors, such as one that merges its weights, is
    left unmerged.

    Parameters
    ----------
    module : torch.nn.Module
        Changed.
    own_statistics : bool, default=True
        See :func:`keep_own_statistics`.
    batch_statistics : bool, default=False
        See :func:`~flatmin.risk.network.batch_statistics.keep_batch_statistics`.

    Returns
    -------
    torch.nn.Module
        The same.

    Raises
    ------
    ValueError
        If its ``train`` writes its parameters: it is merged already.
    """
    if own_statistics:
        keep_own_statistics(module)
    if batch_statistics:
        keep_batch_statistics(module)
    if _switches_itself(module) and _eval_writes(module):
        for part in module.modules():
            part.training = False
    else:
        module.eval()
    return module


def keep_own_statistics(module: nn.Module) -> nn.Module:
    """Make every InstanceNorm in train mode one without running statistics.

    It then takes each example's own, as in train mode, in eval mode too, and no pass
    writes its buffers.

    Parameters
    ----------
    module : torch.nn.Module
        Changed.

    Returns
    -------
    torch.nn.Module
        The same.
    """
    for part in module.modules():
        if isinstance(part, _InstanceNorm) and part.training:
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return module


def fresh_copy(
    module: nn.Module,
    theta: list[Tensor],
    device: torch.device,
    dtype: torch.dtype,
    *,
    batch_statistics: bool,
) -> nn.Module:
    """Return a copy that was never used, with other values of its parameters.

    They are set before the module is switched to eval mode, and what the original
    keeps of its passes is NaN.

    Parameters
    ----------
    module : torch.nn.Module
        The original.
    theta : list of Tensor
        Of the shapes of its trainable parameters.
    device : torch.device
    dtype : torch.dtype
    batch_statistics : bool
        As in :func:`evaluation_mode`.

    Returns
    -------
    torch.nn.Module
    """
    copied = copy_module(module, device=device, dtype=dtype, forget=True)
    keep_own_statistics(copied)
    if batch_statistics:
        keep_batch_statistics(copied)
    if _switches_itself(copied):
        copied.train()
    for parameter, values in zip(trainable(copied), theta, strict=True):
        parameter.data.copy_(values)
    copied.eval()
    settle(copied)
    return copied


def beside(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return other values of parameters, near by: the same at every call.

    Parameters
    ----------
    parameters : iterable of Tensor

    Returns
    -------
    list of Tensor
        Of the same signs, and 0 nowhere; integers as they are.
    """
    rng = torch.Generator().manual_seed(0)
    moved = []
    for parameter in parameters:
        values = parameter.detach()
        if values.is_floating_point() or values.is_complex():
            steps = torch.rand(values.shape, generator=rng, device="cpu")
            steps = 0.1 * (1 - 2 * steps)
            steps = steps.to(values.device, values.dtype)
            size = values.abs().square().mean().sqrt() or 1.0
            values = torch.where(values == 0, size * steps, values * (1 + steps))
        moved.append(values)
    return moved


def settle(module: nn.Module) -> None:
    """Make a copy fit to be differentiated: embeddings and recurrent layers."""
    for name, part in module.named_modules():
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


def settings(module: nn.Module) -> dict[str, Any]:
    """Return what the parts of a module hold in attributes of plain values.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    dict of str to object
        Numbers, strings and functions, also in lists, tuples and dicts; not the mode.
    """
    return {
        f"{name}.{key}": value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in _OF_EVERY_MODULE
        and all(isinstance(leaf, _PLAIN) for leaf in tree_leaves(value))
    }


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = (int, float, complex, str, bytes, NoneType, FunctionType, BuiltinFunctionType)


def _switches_itself(module: nn.Module) -> bool:
    """Return whether a part has a ``train`` or an ``eval`` of its own."""
    return any(
        getattr(getattr(part, name), "__func__", None) is not getattr(nn.Module, name)
        for part in module.modules()
        for name in ("train", "eval")
    )


def _eval_writes(module: nn.Module) -> bool:
    """Return whether ``eval`` writes parameters or buffers, as where LoRA merges."""
    tried = copy_module(module)
    before = [tensor.clone() for tensor in registered(tried)]
    tried.train()
    if not _are_equal(before, registered(tried)):
        raise ValueError(
            "The module must hold the parameters that it trains. Got a "
            f"{type(module).__name__} whose train() writes them, such as one whose "
            "weights are merged in eval mode; call its train() first."
        )
    # Elsewhere than here: an update that is to be merged often begins at zero.
    parameters = list(tried.parameters())
    for parameter, values in zip(parameters, beside(parameters), strict=True):
        parameter.data.copy_(values)
    before = [tensor.clone() for tensor in registered(tried)]
    tried.eval()
    return not _are_equal(before, registered(tried))


def _are_equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    some, others = list(some), list(others)
    return len(some) == len(others) and all(map(torch.equal, some, others))
