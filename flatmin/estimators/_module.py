"""From the ``module`` parameter to a network of the right dtype and device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from flatmin._utils.locks import Lock
from flatmin._utils.messages import first_line
from flatmin._utils.names import check_known
from flatmin.modules import MLP
from flatmin.risk.network.module_copy import copy_module
from flatmin.risk.network.prepared_module import keep_own_statistics

__all__ = ["build_module"]

# Layers draw their initial values from the global generator: one thread at a time may
# seed it, build, and put it back.
_BUILDING = Lock()


def build_module(
    module: Any,
    params: Mapping[str, Any] | None,
    *,
    n_features: int,
    n_outputs: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """Build, or copy, the network; the global generators are left as they were.

    Parameters
    ----------
    module : None, torch.nn.Module class, factory or instance
        None is an :class:`flatmin.modules.MLP`; an instance is deep-copied.
    params : mapping or None
        Keyword arguments of the class or factory.
    n_features : int
        For the default MLP.
    n_outputs : int
        For the default MLP.
    seed : int
        Of the initialisation.
    dtype : torch.dtype
    device : torch.device

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If a parameter does not exist, parameters come with an instance, or a hook waits
        for the gradient of one of the network's.
    TypeError
        If it is nothing that gives a module.
    """
    params = dict(params or {})
    if isinstance(module, nn.Module):
        if params:
            raise ValueError(
                "module is an instance, which is already built. Got module_params="
                f"{params!r}; pass the class to set parameters."
            )
        built = module  # copied below
    else:
        if module is None:
            module = MLP
            params = {"n_features": n_features, "n_outputs": n_outputs, **params}
        if not callable(module):
            raise TypeError(
                "module must be None, a torch.nn.Module class or instance, or a "
                f"function that returns one. Got {module!r}."
            )
        _check_params(module, params)
        with _BUILDING, _seeded(seed, device):
            try:
                built = module(**params)
            except TypeError as error:
                raise TypeError(
                    f"module must be what module_params can make. Got {module!r} and "
                    f"module_params={params!r}: {first_line(error)}."
                ) from error
        if not isinstance(built, nn.Module):
            raise TypeError(f"module must give a torch.nn.Module. Got {built!r}.")
    _check_hooks(built)
    return keep_own_statistics(copy_module(built, device=device, dtype=dtype))


def _check_hooks(module: nn.Module) -> None:
    """Refuse what would be called with a parameter's gradient, and change the steps."""
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise ValueError(
                "Steps are made with one flat gradient, of which no hook of a single "
                f"parameter would be told. Got a hook on {name!r}; freeze parameters "
                "by requires_grad_(False), hold entries constant by a parametrization "
                "that multiplies with a mask, and look at gradients in a callback."
            )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators that a module may draw from, for a while.

    Not ``torch.manual_seed``, which seeds those of all devices, also of the ones that
    are not put back.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _check_params(module: Any, params: Mapping[str, Any]) -> None:
    signature = inspect.signature(module)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return
    title = getattr(module, "__name__", repr(module))
    for name in params:
        check_known(f"parameter of the module {title}", name, signature.parameters)
