"""What a module holds, compared with another, or taken over by it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.network.prepared_module import evaluation_mode, settings, settle

__all__ = ["alike", "check_form", "comparable", "copy_tensors", "reads_alike"]


def comparable(module: nn.Module, *, batch_statistics: bool) -> nn.Module:
    """Return a copy of a module in the form that a risk holds.

    Parameters
    ----------
    module : torch.nn.Module
    batch_statistics : bool
        Whether BatchNorm takes the statistics of its input there.

    Returns
    -------
    torch.nn.Module
    """
    copied = evaluation_mode(copy_module(module), batch_statistics=batch_statistics)
    settle(copied)
    return copied


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Say whether two modules read alike and hold the same tensors and settings.

    Parameters
    ----------
    one : torch.nn.Module
    other : torch.nn.Module
        Both in the form that a risk holds.

    Returns
    -------
    bool
    """
    held = [_tensors(module) for module in (one, other)]
    return (
        reads_alike(one, other)
        and held[0].keys() == held[1].keys()
        and all(
            (a.device, a.dtype) == (b.device, b.dtype) and torch.equal(a, b)
            for a, b in zip(held[0].values(), held[1].values(), strict=True)
        )
    )


def check_form(held: nn.Module, module: nn.Module) -> None:
    """Check that a module has the names and shapes of another one.

    Parameters
    ----------
    held : torch.nn.Module
    module : torch.nn.Module

    Raises
    ------
    ValueError
        If it has others, or trains other parameters.
    """
    ours, theirs = _tensors(held), _tensors(module)
    differences = sorted(ours.keys() ^ theirs.keys()) or [
        f"{name} of shape {tuple(tensor.shape)} and not {tuple(ours[name].shape)}"
        for name, tensor in theirs.items()
        if tensor.shape != ours[name].shape
    ]
    if not differences:
        trained = dict(module.named_parameters())
        differences = [
            f"{name}, which is trained in one of the two alone"
            for name, parameter in held.named_parameters()
            if parameter.requires_grad != trained[name].requires_grad
        ]
    if differences:
        raise ValueError(
            "The module must have the parameters and buffers of the one that the risk "
            "was made with; only their numbers may change. Got another one, by "
            f"{', '.join(differences[:5])}. Make a new risk."
        )


def copy_tensors(held: nn.Module, module: nn.Module) -> None:
    """Copy the parameters and buffers of a module of the same form into another one.

    Parameters
    ----------
    held : torch.nn.Module
        Gets them, in its dtype and on its device.
    module : torch.nn.Module
    """
    theirs = _tensors(module)
    with torch.no_grad():
        for name, tensor in _tensors(held).items():
            tensor.copy_(theirs[name])


def reads_alike(one: nn.Module, other: nn.Module) -> bool:
    """Say whether two modules have the same parts with the same settings.

    Parameters
    ----------
    one : torch.nn.Module
    other : torch.nn.Module

    Returns
    -------
    bool
    """
    return repr(one) == repr(other) and settings(one) == settings(other)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
