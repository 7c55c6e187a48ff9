"""What a module must be before it is copied."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

__all__ = [
    "check_batch_norm",
    "check_kinds",
    "check_parameters",
    "check_shaped",
    "has_active_dropout",
    "overlap",
    "trainable",
    "wrapped",
]

# Names of the module inside a wrapper that computes the same.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters with requires_grad=True, a shared one once."""
    return [p for p in module.parameters() if p.requires_grad]


def check_shaped(module: nn.Module) -> None:
    """Raise ValueError if a parameter or a buffer is lazy and has no shape yet."""
    for kind, tensors in (
        ("parameters", module.parameters()),
        ("buffers", module.buffers()),
    ):
        if any(map(is_lazy, tensors)):
            raise ValueError(
                f"The module has lazy {kind} without a shape. Run one forward pass "
                "through it before it is used here."
            )


def check_parameters(module: nn.Module) -> None:
    """Check that θ is real, there, and that each part of it has memory of its own.

    Parameters
    ----------
    module : torch.nn.Module

    Raises
    ------
    ValueError
        If there is nothing to train, a lazy tensor, a complex parameter, or two that
        share memory.
    """
    check_shaped(module)
    named = dict(module.named_parameters())
    free = {name: p for name, p in named.items() if p.requires_grad}
    if not free:
        raise ValueError(
            "The module has no parameter with requires_grad=True, so there is nothing "
            "to differentiate by. Unfreeze at least one."
        )
    for name, parameter in free.items():
        if parameter.is_complex():
            raise ValueError(
                f"θ is a real vector. Got the complex parameter {name!r}; hold it as "
                "real numbers, w = nn.Parameter(torch.view_as_real(weight)), and read "
                "it by torch.view_as_complex(w). Or freeze it (requires_grad=False)."
            )
    ordered = sorted(free, key=lambda name: free[name].data_ptr())
    before: list[str] = []  # those that may reach into the next one
    for name in ordered:
        parameter = free[name]
        before = [n for n in before if _stop(free[n]) > parameter.data_ptr()]
        for other in before:
            if overlap(parameter, free[other]):
                raise ValueError(
                    "Each trainable parameter must have memory of its own. Got "
                    f"{other!r} and {name!r}, which share some, so that neither "
                    "changes alone; make them one nn.Parameter, or clone one."
                )
        before.append(name)


def check_kinds(module: nn.Module) -> None:
    """Check that no part is of a kind that cannot be copied, or differentiated.

    Parameters
    ----------
    module : torch.nn.Module

    Raises
    ------
    TypeError
        If a part is compiled by TorchScript, or a wrapper with hooks of its own.
    ValueError
        If a part is a CrossMapLRN2d.
    """
    for name, part in module.named_modules():
        title = f"{name!r}, " if name else ""
        if isinstance(part, nn.CrossMapLRN2d):
            raise ValueError(
                "The module must have right derivatives, and those of a CrossMapLRN2d "
                f"are wrong in PyTorch 2.13. Got {title}one; use LocalResponseNorm."
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError(
                f"The module must be written in Python. Got {title}a "
                f"{type(part).__name__}, compiled by TorchScript, whose parameters "
                "cannot be replaced; pass the nn.Module that it was made from."
            )
        if wrapped(part) is not None and (
            part._forward_hooks or part._forward_pre_hooks
        ):
            raise TypeError(
                f"A wrapper is left out of the copy. Got {title}a "
                f"{type(part).__name__} with forward hooks of its own, which would be "
                "lost; register them on the module inside."
            )


def check_batch_norm(module: nn.Module, batch_norm: str) -> None:
    """Check that no BatchNorm lets examples see each other, unless that is asked for.

    Parameters
    ----------
    module : torch.nn.Module
    batch_norm : {"error", "frozen", "batch"}

    Raises
    ------
    ValueError
        If one is in train mode and not to be frozen, or has no running statistics.
    """
    if batch_norm == "batch":
        return
    for name, part in module.named_modules():
        if not isinstance(part, _BatchNorm):
            continue
        if not part.track_running_stats:
            raise ValueError(
                f"{name!r} is a BatchNorm without running statistics: the loss of an "
                "example always depends on the others and per-example gradients are "
                "not defined. Use GroupNorm, or pass batch_norm='batch' for what "
                "needs the loss of the whole batch only."
            )
        if part.training and batch_norm == "error":
            raise ValueError(
                f"{name!r} is a BatchNorm in train mode: the loss of an example "
                "depends on the others and per-example gradients are not defined. "
                "Pass batch_norm='frozen' to use the running statistics, "
                "batch_norm='batch' for what needs the loss of the whole batch only, "
                "or replace it by GroupNorm."
            )


def has_active_dropout(part: nn.Module) -> bool:
    """Return whether a layer of PyTorch drops numbers in its present mode."""
    if not part.training:
        return False
    if isinstance(part, _DropoutNd):
        return part.p > 0
    if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
        return part.dropout > 0
    return False


def wrapped(part: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper that computes the same, or None."""
    kind = type(part)
    if not kind.__module__.startswith(("torch._dynamo.", "torch.nn.parallel.")):
        return None
    name = _WRAPPERS.get(kind.__name__)
    inner: nn.Module | None = None if name is None else getattr(part, name)
    return inner


def overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors share an entry."""
    start = max(one.data_ptr(), other.data_ptr())
    if start >= min(_stop(one), _stop(other)):
        return False
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    places = [
        torch.arange(t.untyped_storage().nbytes() // t.element_size())
        .as_strided(t.shape, t.stride(), t.storage_offset())
        .mul(t.element_size())
        for t in (one, other)
    ]
    return bool(torch.isin(*places).any())


def _stop(tensor: Tensor) -> int:
    """Return the address behind the last entry of a tensor."""
    if tensor.numel() == 0:
        return tensor.data_ptr()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((n - 1) * step for n, step in steps)
    return tensor.data_ptr() + (last + 1) * tensor.element_size()
